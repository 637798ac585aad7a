"""The one verb counts every token, repeats with its seed and records what goes wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import pytest

from gpo.config.components import Spec
from gpo.errors import ConfigError, DataError
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler, request_seed
from gpo.rollout.segmenters import LowProbability, Newline
from gpo.storage.codec import from_json, to_json
from gpo.toy import EOS, ChainEngine, ChainTask
from gpo.types import Completion, Group, Problem, Request, Score, Start

ENGINE, TASK = ChainEngine(), ChainTask()
PROBLEMS = {problem.id: problem for problem in TASK.problems("train")}
STARTS = [question_start(problem, TASK, ENGINE.tokenizer) for problem in PROBLEMS.values()]


def sampler(**settings) -> Sampler:
    return Sampler(**{"engine": ENGINE, "task": TASK, "problems": PROBLEMS, **settings})


def test_groups_come_in_order_and_every_token_is_counted() -> None:
    sample = sampler()
    groups = sample(STARTS[:3], 4)
    assert [group.start for group in groups] == STARTS[:3]
    trajectories = [t for group in groups for t in group.trajectories]
    assert len(trajectories) == 12
    assert sample.tokens == sum(len(t.completion.token_ids) for t in trajectories) == 12 * 14
    assert len({t.id for t in trajectories}) == 12
    assert trajectories[5].id == "rollout:1:1"
    assert all(t.step_ends == (2, 4, 6, 8, 10, 12, 14) for t in trajectories)
    assert {t.score.verdict for t in trajectories} == {"right", "wrong"}
    assert {t.policy_version for t in trajectories} == {None}


def test_trajectories_name_the_policy_that_sampled_them() -> None:
    groups = sampler(policy_version=3)(STARTS[:2], 2)
    assert [t.policy_version for group in groups for t in group.trajectories] == [3] * 4
    assert from_json(Group, to_json(groups[0])) == groups[0]


def test_starts_may_come_one_by_one() -> None:
    assert sampler()((start for start in STARTS[:3]), 2) == sampler()(STARTS[:3], 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": -5}, "limit is -5, expected a whole number of tokens of at least 0"),
        ({"limit": "5"}, "limit is '5', expected a whole number of tokens of at least 0"),
        ({"max_tokens": 0}, "max_tokens is 0, expected a whole number of tokens of at least 1"),
        ({"max_tokens": None}, "max_tokens is None, expected"),
        (
            {"segmenter": "newline"},
            r"The segmenter is the name 'newline', expected an instance: gpo\.make\('segmenter'",
        ),
        ({"segmenter": Newline}, "The segmenter is the class Newline"),
        (
            {"task": Spec("task", "chain")},
            r"The task is the name 'chain', expected an instance: gpo\.make\('task', 'cha",
        ),
        ({"task": ENGINE}, r"'ChainEngine' is not a task: it has no problems\(split\)"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler(**settings)


@pytest.mark.parametrize("n", [0, 2.0, None])
def test_a_number_of_rollouts_that_is_none_is_refused(n: Any) -> None:
    with pytest.raises(ConfigError, match=f"Cannot sample {n!r} trajectories from a start; expected a whole n"):
        sampler()(STARTS[:1], n)


def test_what_is_sampled_does_not_depend_on_how_starts_are_split() -> None:
    together, apart = sampler(), sampler()
    assert together(STARTS[:3], 2) == [*apart(STARTS[:1], 2), *apart(STARTS[1:3], 2)]


def test_a_start_asked_again_gives_new_draws() -> None:
    sample = sampler()
    first, second = sample([STARTS[0], STARTS[0]], 8)
    third = sample([STARTS[0]], 8)[0]
    completions = [tuple(t.completion.token_ids for t in group.trajectories) for group in (first, second, third)]
    assert len(set(completions)) == 3


@pytest.mark.parametrize("change", [{"seed": 1}, {"stream": "reset/gpo/0"}])
def test_seed_and_stream_change_the_draws(change) -> None:
    [before], [after] = sampler()(STARTS[:1], 8), sampler(**change)(STARTS[:1], 8)
    assert [t.completion for t in before.trajectories] != [t.completion for t in after.trajectories]


def test_request_seed_is_stable_between_processes() -> None:
    assert request_seed(0, "rollout", (5, 1), 0) == 4832294297034326155
    assert len({request_seed(0, "a", (1, 2), 0), request_seed(0, "a", (1,), 2), request_seed(0, "a", (12,), 0)}) == 3


def test_a_reset_is_graded_and_cut_with_its_prefix() -> None:
    sample = sampler(logprobs=True)
    parent = sample(STARTS[:1], 1)[0].trajectories[0]
    reset = sample([parent.prefix(6)], 1)[0].trajectories[0]
    assert reset.start.parent == parent.id
    assert reset.completion.text in ("Y", "N")
    assert reset.score == parent.score
    assert reset.step_ends == parent.step_ends
    assert sample.tokens == 14 + 2


def test_a_start_without_room_is_an_empty_group() -> None:
    sample = sampler(max_tokens=4)
    ended = Start("0", STARTS[0].prompt_ids, (15, 1, EOS))
    full = Start("0", STARTS[0].prompt_ids, (15, 1, 15, 1))
    groups = sample([ended, STARTS[0], full], 3)
    assert [len(group.trajectories) for group in groups] == [0, 3, 0]
    assert (sample.skipped, sample.truncated, sample.ungradable) == (2, 3, 3)
    crowded = sampler(engine=ChainEngine(context_length=2))
    assert crowded(STARTS[:1], 3)[0].trajectories == ()
    assert (crowded.skipped, crowded.tokens) == (1, 0)


def test_a_context_that_is_nearly_full_shortens_the_completion() -> None:
    [group] = sampler(engine=ChainEngine(context_length=7))(STARTS[:1], 1)
    assert len(group.trajectories[0].completion.token_ids) == 5


class BrokenGrader(ChainTask):
    def score(self, problem: Problem, text: str) -> Score:
        raise RuntimeError("the grader broke")


def test_a_broken_grader_is_recorded_and_never_a_zero() -> None:
    sample = sampler(task=BrokenGrader())
    [group] = sample(STARTS[:1], 2)
    assert [t.score for t in group.trajectories] == [Score(None, "failed", None, "RuntimeError: the grader broke")] * 2
    assert (sample.failed, sample.ungradable) == (2, 0)


def test_bad_calls_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        sampler()(STARTS[:1], 0)
    with pytest.raises(DataError, match="unknown problem '99'"):
        sampler()([Start("99", (5, 1))], 1)


def test_prefix_tokens_have_no_logprobs_for_the_segmenter() -> None:
    seen = []

    @dataclass(frozen=True)
    class Spy(Newline):
        def __call__(self, token_ids, tokenizer, logprobs=None) -> tuple[int, ...]:
            seen.append(logprobs)
            return super().__call__(token_ids, tokenizer)

    parent = sampler()(STARTS[:1], 1)[0].trajectories[0]
    reset = sampler(logprobs=True, segmenter=Spy())([parent.prefix(1)], 1)[0].trajectories[0]
    assert [isnan(value) for value in seen[0]] == [True, True] + [False] * 12
    assert seen[0][2:] == reset.completion.logprobs


class SplitCharacterTokenizer:
    """Two tokens make one character; decoded apart they are replacement characters."""

    eos_token_id = None
    chat_template = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [0xC3, 0xA9] * len(text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode(errors="replace")


class SplitCharacterEngine:
    tokenizer = SplitCharacterTokenizer()
    stop_ids = frozenset({0})
    context_length = 100

    def generate(self, requests: Sequence[Request], *, temperature=1.0, logprobs=False) -> list[list[Completion]]:
        return [[Completion((0xA9,), self.tokenizer.decode([0xA9]), "length")] * r.n for r in requests]


def test_the_response_is_decoded_in_one_piece() -> None:
    texts = []

    class Reader(ChainTask):
        def score(self, problem: Problem, text: str) -> Score:
            texts.append(text)
            return Score(0.0, "wrong")

    sampler(engine=SplitCharacterEngine(), task=Reader())([Start("0", (0x61,), (0xC3,))], 1)
    assert texts == ["é"]


def test_log_probabilities_are_looked_up_at_the_temperature_of_sampling() -> None:
    told: list[float] = []

    class Silent(ChainEngine):
        def generate(self, requests: Sequence[Request], *, temperature=1.0, logprobs=False) -> list[list[Completion]]:
            return super().generate(requests, temperature=temperature)

        def logprobs(self, contexts, continuations, *, temperature=1.0) -> list[tuple[float, ...]]:
            told.append(temperature)
            return super().logprobs(contexts, continuations, temperature=temperature)

    for temperature in (0.5, 0.0):
        sampler(engine=Silent(), segmenter=LowProbability(), temperature=temperature)(STARTS[:1], 1)
    assert told == [0.5, 1.0]  # greedy: by the model as it is
