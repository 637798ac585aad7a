"""What goes through the model in an update: what sequences share once, whatever the method."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_online import METHODS, group, run
from tiny_policy import EOS, make_model, make_pairs, make_tokenizer
from trl.trainer.utils import add_fused_lm_head

from gpo.methods.dpo import DPO
from gpo.methods.kto import KTO
from gpo.methods.offline import Offline
from gpo.methods.online import Online
from gpo.methods.orpo import ORPO
from gpo.methods.simpo import SimPO
from gpo.methods.trainers import OnTokenIds, PairTrainer, ReferenceFreeTrainer, UnpairedTrainer
from gpo.types import Pair


def counted(model: Any) -> list[int]:
    """Tokens of each pass of the model that training takes a gradient of."""
    passes: list[int] = []

    def count(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            passes.append(inputs[0].numel())

    model.get_input_embeddings().register_forward_hook(count)
    return passes


def long_pairs(count: int) -> list[Pair]:
    """Pairs behind one prefix of 40 tokens, with completions of a few tokens."""
    prefix = tuple(range(40))
    return [replace(pair, problem_id="p", prompt_ids=(1, 2), prefix_ids=prefix) for pair in make_pairs(count)]


@pytest.mark.parametrize("kind", [DPO, KTO, SimPO, ORPO])
def test_a_prefix_of_a_batch_is_computed_once_offline(kind: type[Offline]) -> None:
    model = make_model(context=128)
    passes = counted(model)
    kind(model, make_tokenizer(), batch_size=8).update(long_pairs(8))
    assert 0 < max(passes) < 8 * 42  # as rows, eight or sixteen of more than 42 tokens each


@pytest.mark.parametrize("kind", METHODS)
def test_a_prefix_of_a_group_is_computed_once_online(kind: type[Online]) -> None:
    model = make_model(context=128)
    passes = counted(model)
    rows = [((i, 5, EOS), float(i % 2)) for i in range(3, 19)]
    run(kind, model, [group((1, 2), tuple(range(40)), *rows)])
    assert passes == [128]  # 42 + 16 * 2 distinct tokens, in whole tiles of 64; as rows they are 16 * 44


@pytest.mark.parametrize(
    ("kind", "trainer"), [(DPO, PairTrainer), (KTO, UnpairedTrainer), (ORPO, ReferenceFreeTrainer)]
)
def test_padded_rows_are_scored_as_by_trls_own_head(
    monkeypatch: pytest.MonkeyPatch, kind: type[Offline], trainer: type[OnTokenIds]
) -> None:
    ours = trainer._score_rows
    compared = 0

    def both(self: Any, **inputs: Any) -> Any:
        nonlocal compared
        out = ours(self, **inputs)
        plain = make_model()
        add_fused_lm_head(plain, outputs=("log_probs", "entropy"))
        plain.load_state_dict(self.model.state_dict())
        theirs = plain(**inputs, fused_lm_head=True)
        torch.testing.assert_close(out.log_probs, theirs.log_probs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.entropy, theirs.entropy, atol=1e-5, rtol=1e-5)
        compared += 1
        return out

    monkeypatch.setattr(trainer, "_score_rows", both)
    kind(make_model(), make_tokenizer(), batch_size=4, learning_rate=1e-3).update(make_pairs(6))
    assert compared >= 2
