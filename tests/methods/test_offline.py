"""What all four offline methods must do alike: our token ids, the reference, memory savers, adapters, bad input."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import EOS, completion_logps, make_model, make_pairs, make_tokenizer, same, state

from gpo.errors import DataError
from gpo.methods.dpo import DPO
from gpo.methods.kto import KTO
from gpo.methods.offline import Offline
from gpo.methods.orpo import ORPO
from gpo.methods.simpo import SimPO
from gpo.methods.trainers import OnTokenIds
from gpo.types import Pair, PairSettings, PrefixIn, RoundContext

METHODS = [DPO, KTO, SimPO, ORPO]
Sequences = list[tuple[tuple[int, ...], tuple[int, ...]]]  # (context, completion)


def method(kind: type[Offline], model: Any = None, **settings: Any) -> Offline:
    settings = {"batch_size": 4, "learning_rate": 1e-3, "warmup": 0.0, **settings}
    return kind(model or make_model(), make_tokenizer(), **settings)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every batch as the collator has made it and the loss gets it."""
    batches: list[dict[str, Any]] = []
    for trainer in OnTokenIds.__subclasses__():
        compute = trainer.compute_loss  # type: ignore[attr-defined]

        def spy(self: Any, model: Any, inputs: Any, *rest: Any, _compute: Any = compute, **more: Any) -> Any:
            batches.append({key: value.tolist() for key, value in inputs.items()})
            return _compute(self, model, inputs, *rest, **more)

        monkeypatch.setattr(trainer, "compute_loss", spy)
    return batches


def sequences(batch: dict[str, Any]) -> Sequences:
    rows = zip(*(batch[key] for key in ("input_ids", "attention_mask", "completion_mask")), strict=True)
    found = []
    for ids, attended, trained in rows:
        end, begin = sum(attended), sum(attended) - sum(trained)
        assert trained[begin:end] == [1] * (end - begin)
        found.append((tuple(ids[:begin]), tuple(ids[begin:end])))
    return found


def expected(pairs: Sequence[Pair], *, prefix_trained: bool) -> Sequences:
    found = []
    for pair in pairs:
        context, shared = (
            (pair.prompt_ids, pair.prefix_ids) if prefix_trained else (pair.prompt_ids + pair.prefix_ids, ())
        )
        found += [(context, shared + ids) for ids in (pair.chosen_ids, pair.rejected_ids)]
    return found


@pytest.mark.parametrize(("kind", "prefix_in"), [(DPO, "masked"), *product(METHODS, ("prompt", "completion"))])
def test_our_token_ids_reach_the_loss_unchanged(
    seen: list[dict[str, Any]], kind: type[Offline], prefix_in: PrefixIn
) -> None:
    pairs = make_pairs(8)
    method(kind).update(pairs, RoundContext(pairing=PairSettings(prefix_in=prefix_in)))
    found = [row for batch in seen for row in sequences(batch)]
    assert sorted(found) == sorted(expected(pairs, prefix_trained=prefix_in == "completion"))
    assert {ids[-1] == EOS for _, ids in found} == {True, False}  # an end only where it was sampled


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_the_reference_is_the_model_at_the_start_of_the_round(seen: list[dict[str, Any]], kind: type[Offline]) -> None:
    trained = method(kind, epochs=2, learning_rate=1e-2)
    for seed in range(2):
        start = copy.deepcopy(trained.policy.model)
        seen.clear()
        trained.update(make_pairs(4, seed))
        assert not same(state(start), state(trained.policy.model))
        for batch in seen:
            told = batch["ref_logps"] if kind is KTO else batch["ref_chosen_logps"] + batch["ref_rejected_logps"]
            with torch.no_grad():
                own = [completion_logps(start, context, ids).sum().item() for context, ids in sequences(batch)]
            assert told == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_one_step_trains_although_a_warm_up_begins_at_nothing(kind: type[Offline]) -> None:
    trained = method(kind, batch_size=8, warmup=0.1)
    start = state(copy.deepcopy(trained.policy.model))
    trained.update(make_pairs(4))
    assert not same(start, state(trained.policy.model))


@pytest.mark.parametrize("kind", [DPO, SimPO, ORPO])
def test_accumulated_batches_are_one_step_of_the_whole(kind: type[Offline]) -> None:
    pairs = make_pairs(8)
    weights = []
    for size, batches in ((8, 1), (2, 4)):
        trained = method(kind, batch_size=size, gradient_accumulation=batches)
        assert trained.update(pairs)["steps"] == 1
        weights.append(state(trained.policy.model))
    # Adam's first step is the sign of the gradient: where that is nearly 0, rounding moves a weight.
    moved = [(a - b).abs() for a, b in zip(*weights, strict=True)]
    assert sum((m > 1e-5).sum().item() for m in moved) / sum(m.numel() for m in moved) < 0.01


@pytest.mark.parametrize(("kind", "lora"), [*((kind, None) for kind in METHODS), (DPO, 2)])
def test_checkpointing_of_activations_changes_nothing(kind: type[Offline], lora: int | None) -> None:
    weights = []
    for checkpointing in (False, True):
        trained = method(kind, gradient_checkpointing=checkpointing, lora=lora)
        trained.update(make_pairs(4))
        weights.append(state(trained.policy.model))
    for plain, saved in zip(*weights, strict=True):
        torch.testing.assert_close(plain, saved, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", METHODS)
def test_bf16_computes_roughly_the_same_with_float32_weights(kind: type[Offline]) -> None:
    losses = []
    for bf16 in (False, True):
        trained = method(kind, bf16=bf16, epochs=2)
        losses.append(trained.update(make_pairs(4))["loss"])
        assert {weights.dtype for weights in state(trained.policy.model)} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("kind", METHODS)
def test_adapters_alone_are_trained_and_saved_and_merge_into_the_same_model(
    tmp_path: Path, kind: type[Offline]
) -> None:
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    trained = kind(tmp_path / "base", batch_size=4, learning_rate=1e-2, lora=2)
    trained.update(make_pairs(8))
    model = trained.policy.model
    frozen = {name: weights for name, weights in model.get_base_model().named_parameters() if "lora" not in name}
    base = dict(make_model().named_parameters())
    assert all(torch.equal(weights, base[name.replace(".base_layer", "")]) for name, weights in frozen.items())
    trained.save(tmp_path / "adapters")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "adapters").iterdir()}
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    trained.merge = True
    trained.save(tmp_path / "merged")
    pair = make_pairs(1)[0]
    logps = []
    with torch.no_grad():
        for name in ("adapters", "merged", "base"):
            loaded = kind(tmp_path / name).policy.model
            logps.append(completion_logps(loaded, pair.prompt_ids, pair.chosen_ids).sum().item())
    assert logps[0] == pytest.approx(logps[1], abs=1e-4)
    assert abs(logps[0] - logps[2]) > 1e-3


@pytest.mark.parametrize("kind", METHODS)
def test_a_loss_that_is_no_number_stops_training(kind: type[Offline]) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(DataError, match=r"loss of step 1 is nan.*Lower learning_rate.*check the model's weights"):
        method(kind, model).update(make_pairs(4))


@pytest.mark.parametrize("kind", METHODS)
def test_a_vocabulary_that_does_not_fit_is_an_error(kind: type[Offline]) -> None:
    with pytest.raises(DataError, match=r"Token id 41 is outside the model's vocabulary of 41 tokens.*sample it again"):
        method(kind, make_model(vocab_size=41)).update(make_pairs(2))


def test_the_metrics_tell_of_resets_and_of_the_search() -> None:
    told = {"parent": "t", "critical_step": 1, "values": [0.5, 0.25, 1.0]}
    unknown = {"parent": "u", "critical_step": 0, "values": [0.5, None]}
    pairs = [replace(pair, provenance=told) for pair in make_pairs(3)]
    pairs[2] = replace(pairs[2], prefix_ids=(), provenance=unknown)
    metrics = method(DPO).update(pairs)
    assert metrics["reset_share"] == pytest.approx(2 / 3)
    assert metrics["critical_advantage"] == 0.75
    assert "critical_advantage" not in method(DPO).update(make_pairs(2))


def test_rows_of_a_run_tell_of_all_that_was_searched_and_not_of_the_pairs_alone() -> None:
    rows: list[dict[str, float]] = []
    told = {"parent": "t", "critical_step": 0, "values": [0.25, 1.0]}
    context = RoundContext(sampled={"critical_advantage": 0.5}, on_step=rows.append)
    method(DPO).update([replace(pair, provenance=told) for pair in make_pairs(2)], context)
    assert [row["critical_advantage"] for row in rows] == [0.5]


@pytest.mark.parametrize("kind", METHODS)
def test_trained_tokens_are_those_of_both_sequences_of_each_pair_in_every_epoch(kind: type[Offline]) -> None:
    pairs = make_pairs(4)
    both = sum(
        2 * len(pair.prompt_ids + pair.prefix_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs
    )
    assert method(kind, epochs=2).update(pairs)["trained_tokens"] == 2 * both


def test_the_learning_rate_follows_the_schedule() -> None:
    rates = {}
    for schedule in ("linear", "constant"):
        rows: list[dict[str, float]] = []
        method(DPO, schedule=schedule).update(make_pairs(12), RoundContext(on_step=rows.append))
        rates[schedule] = [row["learning_rate"] for row in rows]
    assert rates["constant"] == [1e-3] * 3
    assert rates["linear"] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
