"""Forced answers are scored as a pass of their own would score them; the step that settles the answer is found."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from toy_chain import Unused
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from gpo.errors import ConfigError
from gpo.estimators import forced, probe
from gpo.estimators.forced import forced_logprobs
from gpo.estimators.probe import Probe
from gpo.rollout.prompting import Conclusions, form_of
from gpo.types import Completion, Evidence, Group, Problem, Score, Start, Trajectory

SHAPE = {
    **{"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, sliding_window=8)),  # keeps not every position
}
IDS = tuple(range(1, 21))
ROWS = [(6, (3, 4), (5, 6, 7)), (12, (3, 4), (9,)), (20, (8,), (1, 2)), (9, (), (1, 2)), (1, (2,), (3,))]


@pytest.mark.parametrize("keys", [1 << 16, 40])
@pytest.mark.parametrize("name", MODELS)
def test_a_shared_pass_says_what_passes_of_their_own_say(name: str, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forced, "PASS_KEYS", keys)  # rows in several parts
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(config)
    model.train()
    found = forced_logprobs(model, IDS, ROWS)
    assert model.training
    model.eval()
    for nats, (kept, phrase, scored) in zip(found, ROWS, strict=True):
        ids = torch.tensor([[*IDS[:kept], *phrase, *scored]])
        told = model(ids).logits[0].detach().log_softmax(-1)
        first = ids.shape[1] - len(scored) - 1
        expected = sum(told[first + i, token].item() for i, token in enumerate(scored))
        assert nats == pytest.approx(expected, abs=1e-5)


def response(reward: float, answer: str | None = "7", steps: int = 4) -> Trajectory:
    ends = tuple(2 * (k + 1) for k in range(steps))
    verdict = "right" if reward else "wrong"
    completion = Completion(tuple(range(2 * steps)), "so it is 7", "stop")
    return Trajectory(f"t{reward}", Start("p", (1, 2)), completion, Score(reward, verdict, answer), ends)


def told(settled: list[float], monkeypatch: pytest.MonkeyPatch) -> Probe:
    """A probe of a model whose answer is so probable at each boundary."""

    def forced_to(model: object, ids: object, rows: list[tuple[int, tuple[int, ...], tuple[int, ...]]]) -> list[float]:
        assert [row[0] for row in rows] == [2 + 2 * k for k in range(len(rows))]  # behind the prompt
        assert {row[1:] for row in rows} == {((8,), (9,))}
        return [log(p) for p in settled[: len(rows)]]

    monkeypatch.setattr(probe, "forced_logprobs", forced_to)
    return Probe(object(), lambda start, answer: ((8,), (9,)))


def test_values_go_from_the_base_rate_to_the_reward_as_the_answer_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    search = told([0.1, 0.1, 0.8, 0.9], monkeypatch)
    right, wrong = response(1.0), response(0.0)
    others = tuple(replace(response(reward), id=f"o{i}") for i, reward in enumerate((1.0, 0.0, 0.0)))
    scores = search([right, wrong], Unused(), Evidence((Group(right.start, (right, wrong, *others)),)))
    # Beside each there are four others and one half: 1.5 of 5 and 2.5 of 5.
    np.testing.assert_allclose(scores[0].values, [0.3 + 0.7 * q for q in (0.1, 0.1, 0.8, 0.9, 1.0)])
    np.testing.assert_allclose(scores[1].values, [0.5 - 0.5 * q for q in (0.1, 0.1, 0.8, 0.9, 1.0)])
    assert scores[0].critical_step == 1
    assert [score.tokens for score in scores] == [0, 0]
    [lost] = replace(search, rule="drop")([wrong], Unused())
    assert (lost.critical_step, lost.reset_boundary) == (1, 1)


def test_without_an_answer_or_a_step_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    search = told([0.1] * 4, monkeypatch)
    empty = replace(response(0.0), step_ends=(), completion=Completion((), "", "stop"))
    for trajectory in (response(0.0, None), empty):
        [score] = search([trajectory], Unused())
        assert score.critical_step is None
        assert score.misfit(len(trajectory.step_ends)) is None


def test_the_answer_is_asked_for_as_it_is_written() -> None:
    asked = []
    search = Probe(object(), lambda start, answer: asked.append(answer) or ((1,), (2,)))  # type: ignore[func-returns-value]
    trajectory = replace(response(1.0, "yes"), completion=Completion(tuple(range(8)), "yes?\nSo: Yes.", "stop"))
    with pytest.raises(AttributeError):  # no model is behind it
        search([trajectory], Unused())
    assert set(asked) == {"Yes"}


def test_a_probe_without_a_model_or_a_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="Probe has no model"):
        Probe()
    with pytest.raises(ConfigError, match="how an answer is said"):
        Probe(object())([response(1.0)], Unused())


class Words:
    """A token for each word, the space before it included."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        parts = text.replace("\n", "\n|").replace(" ", "| ").split("|")
        for part in parts:
            if part and part not in self.known:
                self.known.append(part)
        return [self.known.index(part) for part in parts if part]

    def decode(self, ids: tuple[int, ...], *, skip_special_tokens: bool = False) -> str:
        return "".join(self.known[i] for i in ids)


class Asking:
    """A task that asks for a form."""

    def __init__(self, form: str) -> None:
        self.form = form

    def prompt(self, problem: Problem) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{problem.question}\n{self.form}"}]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ('End with the line "#### NUMBER".', "#### 7"),
        ("Put the final answer in \\boxed{}.", "The final answer is \\boxed{7}"),
        ('End with "So the answer is ANSWER."', "So the answer is 7"),
        ("", "So the answer is 7"),
    ],
)
def test_an_answer_is_said_as_the_prompt_asks_on_a_line_of_its_own(form: str, said: str) -> None:
    tokenizer = Words()
    says = Conclusions(Asking(form), {"p": Problem("p", "Why?", "7")}, tokenizer)  # type: ignore[arg-type]
    step = tuple(tokenizer.encode("One step."))
    for prefix, line in (((), ""), (step, "\n"), ((*step, *tokenizer.encode("\n")), "")):
        phrase, answer = says(Start("p", (1,), prefix), "7")
        assert tokenizer.decode(phrase + answer) == line + said
        assert "7" in tokenizer.decode(answer)
        assert "7" not in tokenizer.decode(phrase)
    if said.endswith("is 7"):
        assert tokenizer.decode(answer) == " 7"  # as it is tokenised behind the phrase


def test_examples_say_the_form_too() -> None:
    turns = [("user", "2 + 2?"), ("assistant", "It is 4.\n#### 4"), ("user", "Why is the answer is so?")]
    assert form_of([{"role": role, "content": text} for role, text in turns[:2]])[0] == "#### "
