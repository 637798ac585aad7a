"""Log-probabilities in chunks of positions: the same numbers and gradients, and no logits of a whole batch."""

import copy
from random import Random
from typing import Any

import pytest
import torch
from test_architectures import FAMILIES, SMALL, make
from tiny_policy import make_model, make_tokenizer
from torch import Tensor

import gpo.methods.outputs
from gpo.methods.outputs import PolicyOutputs, has_plain_head, sequence_outputs
from gpo.methods.policy import load_policy
from gpo.methods.rows import TrainingRow
from gpo.types import ModelRef, Start

OTHERS = {"Cohere": {**SMALL, "logit_scale": 0.5}, "Granite": {**SMALL, "logits_scaling": 3.0}}


def rows(count: int = 5) -> list[TrainingRow]:
    random = Random(0)
    made = []
    for _ in range(count):
        context, tokens = (tuple(random.choices(range(40), k=random.randint(1, 9))) for _ in range(2))
        made.append(TrainingRow(context, tokens, 1.0, 0, Start("p", context), None))
    return made


def whole(model: Any, given: list[TrainingRow], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of all trained tokens, row by row, from the model's own logits."""
    found = []
    for row in given:
        every = (model(torch.tensor([row.ids])).logits[0].float() / temperature).log_softmax(-1)
        every = every[len(row.context) - 1 : -1]
        found.append((every.gather(-1, torch.tensor(row.tokens)[:, None])[:, 0], -(every.exp() * every).sum(-1)))
    logps, entropy = (torch.cat(each) for each in zip(*found, strict=True))
    return logps, entropy


def gradients(model: Any, logps: Tensor) -> list[Tensor]:
    model.zero_grad()
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_chunks_give_the_numbers_and_gradients_of_the_whole(
    family: str, lora: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, family, (FAMILIES | OTHERS)[family])
    monkeypatch.setattr("gpo.methods.outputs.CHUNK", 48 * 7)  # seven positions
    model = load_policy(ModelRef(make(family), family, tokenizer=make_tokenizer()), own=True, lora=lora).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    given = rows()
    out = sequence_outputs(model, given, 0.7)
    logps, entropy = whole(model, given, 0.7)
    found = torch.cat([values[mask > 0] for values, mask in zip(out.logps, out.mask, strict=True)])
    torch.testing.assert_close(found, logps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.entropy[out.mask > 0], entropy, atol=1e-5, rtol=1e-5)
    assert not out.entropy.requires_grad
    for left, right in zip(gradients(model, found), gradients(model, logps), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)
    assert (out.logps[out.mask == 0] == 0).all()


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_a_head_that_is_not_all_is_noticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, family, (FAMILIES | OTHERS)[family])
    assert has_plain_head(make(family), torch.tensor([[1, 2, 3]])) == (family not in ("Gemma2", *OTHERS))


def test_a_head_that_no_configuration_tells_of_is_noticed() -> None:
    model = make_model()
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = 1.5 * out.logits
        return out

    model.forward = scaled
    assert not has_plain_head(model, torch.tensor([[1, 2, 3]]))
    given = rows()
    out, (logps, _) = sequence_outputs(model, given, 1.0), whole(model, given, 1.0)
    torch.testing.assert_close(out.logps[out.mask > 0], logps, atol=1e-5, rtol=1e-5)


def test_hidden_states_are_kept_if_they_are_asked_for_and_of_the_last_layer_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    given = rows()
    assert sequence_outputs(model, given, 1.0).hidden is None
    out = sequence_outputs(model, given, 1.0, hidden=True)
    expected = model(torch.tensor([given[0].ids]), output_hidden_states=True).hidden_states[-1][0, :-1]
    assert out.hidden is not None
    torch.testing.assert_close(out.hidden[0, : len(expected)], expected, atol=1e-5, rtol=1e-5)

    def no_logits(**_: Any) -> PolicyOutputs:
        raise AssertionError("the whole model was run")

    monkeypatch.setattr(model, "forward", no_logits)
    sequence_outputs(model, given, 1.0, hidden=True)


def test_no_tensor_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head never sees more positions at once than a chunk has, in the forward pass and in the backward one."""
    monkeypatch.setattr(gpo.methods.outputs, "CHUNK", 48 * 4)
    model, seen = make_model(), []
    given = rows()
    has_plain_head(model, torch.tensor([given[0].ids[:8]]))
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel() // 32))
    out = sequence_outputs(model, given, 1.0)
    forward = len(seen)
    out.logps.sum().backward()
    assert max(seen) <= 4
    assert len(seen) > forward > 2  # computed again for the gradient


def test_a_copy_of_a_model_is_looked_at_anew() -> None:
    model = make_model()
    assert has_plain_head(model, torch.tensor([[1, 2]]))
    other = copy.deepcopy(model)
    other.config.final_logit_softcapping = 5.0
    assert not has_plain_head(other, torch.tensor([[1, 2]]))
