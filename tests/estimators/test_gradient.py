"""Influence of steps on the answer: worked out by hand on a linear model, and the two kinds against each other."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_chain import Unused, first_rollouts

from gpo.errors import ConfigError
from gpo.estimators.gradient import Gradient, influences
from gpo.toy import VOCABULARY, ChainEngine

WEIGHTS = {"a": 0.5, "b": -2.0}


class BagModel(torch.nn.Module):
    """The logit of "Y" at a position is the sum of what the tokens up to there add; all other logits are 0."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(len(VOCABULARY), 1)
        self.embedding.weight.data = torch.tensor([[WEIGHTS.get(symbol, 0.0)] for symbol in VOCABULARY])

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> SimpleNamespace:
        inputs = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        sums = inputs.cumsum(1)
        one_hot = torch.nn.functional.one_hot(torch.tensor(VOCABULARY.index("Y")), len(VOCABULARY)).float()
        return SimpleNamespace(logits=sums * one_hot)


def trajectory_of(text: str) -> Any:
    from dataclasses import replace

    first = first_rollouts(ChainEngine(), 1)[0]
    ids = (*ChainEngine().tokenizer.encode(text), 0)
    ends = tuple(i + 1 for i, symbol in enumerate(text) if symbol == "\n")
    completion = replace(first.completion, token_ids=ids, text=text)
    return replace(first, completion=completion, step_ends=(*ends, len(ids)))


def test_influences_are_those_worked_out_by_hand() -> None:
    """With z = 0.5 + 0.5 - 2 = -1 before "Y": d log p(Y) = (1 - p) dz, p = e^z / (e^z + V - 1)."""
    trajectory = trajectory_of("a\na\nb\nY")
    z, others = -1.0, len(VOCABULARY) - 1
    p = torch.tensor(z).exp() / (torch.tensor(z).exp() + others)
    # The end-of-sequence token that follows has probability 1 / (e^z + V - 1): its gradient is -p dz.
    slope = float(1 - 2 * p)
    found = influences(BagModel(), trajectory, 2, "gradient")
    assert found == pytest.approx([0.5 * slope, 0.5 * slope, -2.0 * slope, 0.0], abs=1e-6)

    def log_p(logit: float) -> float:
        value = torch.tensor(logit)
        return float(value - 2 * (value.exp() + others).log())

    removed = influences(BagModel(), trajectory, 2, "deletion")
    expected = [log_p(z) - log_p(z - 0.5), log_p(z) - log_p(z - 0.5), log_p(z) - log_p(z + 2.0), 0.0]
    assert removed == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("sign", "step"), [("support", 0), ("oppose", 2), ("size", 2)])
@pytest.mark.parametrize("influence", ["gradient", "deletion"])
def test_the_step_is_chosen_by_sign(sign: Any, step: int, influence: Any) -> None:
    model = BagModel().train()
    [scores] = Gradient(model, influence, sign, answer_tokens=2)([trajectory_of("a\na\nb\nY")], Unused())
    assert (scores.critical_step, scores.reset_boundary, scores.tokens) == (step, step, 0)
    assert scores.counts == (0, 0, 0, 0, 1)
    assert model.training
    assert model.embedding.weight.grad is None


def test_a_response_that_is_all_answer_has_no_critical_step() -> None:
    [scores] = Gradient(BagModel(), answer_tokens=9)([trajectory_of("a\nY")], Unused())
    assert scores.critical_step is None
    assert scores.reset_boundary is None


@pytest.mark.parametrize("settings", [{}, {"influence": "x"}, {"sign": "x"}, {"answer_tokens": 0}, {"reset": "x"}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Gradient"):
        Gradient(**({"model": BagModel()} | settings if settings else {}))
