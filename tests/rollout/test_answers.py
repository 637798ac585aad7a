"""What an engine answers is checked, and asked for where a segmenter needs it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan

import pytest

from gpo.errors import EngineError
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.rollout.segmenters import LowProbability, Newline
from gpo.toy import EOS, VOCABULARY, ChainEngine, ChainTask, ChainTokenizer
from gpo.types import Completion, Request

TASK = ChainTask()
PROBLEMS = {problem.id: problem for problem in TASK.problems("train")}
STARTS = [question_start(problem, TASK, ChainTokenizer()) for problem in PROBLEMS.values()]


@dataclass(frozen=True)
class CountedTokenizer(ChainTokenizer):
    def __len__(self) -> int:
        return len(VOCABULARY)


@dataclass
class Damaged(ChainEngine):
    """Changes each completion before it answers."""

    change: object = None
    tokenizer: ChainTokenizer = CountedTokenizer()

    def generate(self, requests: Sequence[Request], **settings) -> list[list[Completion]]:
        return [[self.change(c) for c in answer] for answer in super().generate(requests, **settings)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, token_ids=c.token_ids * 40), "completion of 560 tokens; expected at most 512"),
        (
            lambda c: replace(c, token_ids=(3, 4100)),
            r"token id 4100; expected ids from 0 to 1064. Give the engine the tok",
        ),
        (lambda c: replace(c, token_ids=(3, -1)), "token id -1; expected ids from 0 to 1064"),
        (lambda c: replace(c, finish_reason="eos"), "finish reason 'eos'; expected stop or length"),
        (
            lambda c: replace(c, token_ids=(*c.token_ids[:-1], 3)),
            "stops with token 3; expected one of its stop_ids, 0,",
        ),
        (lambda c: replace(c, token_ids=(), logprobs=()), "a completion of no tokens; expected at least"),
        (lambda c: replace(c, token_ids=list(c.token_ids)), "whose token_ids are a list; expected a tuple of int"),
        (lambda c: replace(c, token_ids=(3.0,)), "whose token_ids are a tuple with a float; expected a tuple of int"),
        (lambda c: replace(c, logprobs=c.logprobs[1:]), "13 log-probabilities; expected one for each of 14 tokens"),
        (lambda c: replace(c, logprobs=(nan,) * 14), "log-probability nan; expected nats of at most 0"),
        (lambda c: replace(c, logprobs=(0.5,) * 14), "log-probability 0.5; expected nats of at most 0"),
    ],
)
def test_a_completion_that_cannot_be_is_an_error(change, message: str) -> None:
    with pytest.raises(EngineError, match=message) as told:
        Sampler(Damaged(change=change), TASK, PROBLEMS, logprobs=True)(STARTS[:1], 1)
    assert str(told.value).startswith("The engine Damaged")


def test_a_little_above_zero_is_rounding() -> None:
    engine = Damaged(change=lambda c: replace(c, logprobs=(1e-4,) * 14))
    assert len(Sampler(engine, TASK, PROBLEMS, logprobs=True)(STARTS[:1], 2)[0].trajectories) == 2


def test_the_numbers_of_answers_and_completions_are_those_asked_for() -> None:
    class Fewer(ChainEngine):
        def generate(self, requests, **settings):
            return [answer[:-1] for answer in super().generate(requests, **settings)]

    class Shorter(ChainEngine):
        def generate(self, requests, **settings):
            return super().generate(requests, **settings)[1:]

    with pytest.raises(EngineError, match="answer to request 0 has 2 completions; expected 3"):
        Sampler(Fewer(), TASK, PROBLEMS)(STARTS[:2], 3)
    with pytest.raises(EngineError, match="answered 1 requests; expected 2, in order"):
        Sampler(Shorter(), TASK, PROBLEMS)(STARTS[:2], 3)


def test_a_response_ends_with_any_of_the_engines_stop_tokens() -> None:
    class TwoEnds(ChainEngine):
        stop_ids = frozenset({EOS, 3})

    sample = Sampler(TwoEnds(), TASK, PROBLEMS)
    ended = replace(STARTS[0], prefix_ids=(15, 1, 3))
    assert sample([ended], 2)[0].trajectories == ()
    assert sample.skipped == 1


def test_a_segmenter_that_needs_log_probabilities_gets_them() -> None:
    cut = LowProbability(probability=0.9, every=1)
    [group] = Sampler(ChainEngine(), TASK, PROBLEMS, segmenter=cut)(STARTS[:1], 4)
    asked = Sampler(ChainEngine(), TASK, PROBLEMS, segmenter=cut, logprobs=True)(STARTS[:1], 4)
    assert [group] == asked
    assert max(len(t.step_ends) for t in group.trajectories) > 2
    [plain] = Sampler(ChainEngine(), TASK, PROBLEMS, segmenter=Newline())(STARTS[:1], 4)
    assert {t.completion.logprobs for t in plain.trajectories} == {None}


def test_an_engine_that_gives_none_while_sampling_is_asked_for_them_afterwards() -> None:
    class Afterwards(ChainEngine):
        def generate(self, requests, *, temperature=1.0, logprobs=False):
            return super().generate(requests, temperature=temperature)

        def logprobs(self, contexts, continuations, *, temperature=1.0):
            told.append((len(contexts), temperature))
            assert all(tuple(context) == STARTS[0].token_ids for context in contexts)
            return [(-3.0, *(0.0,) * (len(ids) - 1)) for ids in continuations]

    told: list[tuple[int, float]] = []
    sample = Sampler(Afterwards(), TASK, PROBLEMS, segmenter=LowProbability(every=1), temperature=0.7)
    [group] = sample(STARTS[:1], 3)
    assert told == [(3, 0.7)]
    assert [t.completion.logprobs[0] for t in group.trajectories] == [-3.0] * 3
