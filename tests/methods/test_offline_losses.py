"""KTO, SimPO and ORPO: every loss of a run against numbers from one sequence at a time."""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_policy import completion_logps, make_model, make_pairs, make_tokenizer

from gpo.errors import ConfigError
from gpo.methods.division import PairRow
from gpo.methods.dpo import DPO
from gpo.methods.kto import KTO, mismatch
from gpo.methods.offline import Offline
from gpo.methods.orpo import ORPO
from gpo.methods.simpo import SimPO
from gpo.methods.trainers import OnTokenIds, PairTrainer, ReferenceFreeTrainer, UnpairedTrainer
from gpo.types import PrefixIn, RoundContext

SETTINGS = {"batch_size": 4, "learning_rate": 1e-3, "warmup": 0.0, "epochs": 3, "max_grad_norm": 100.0}
METHODS = [KTO, SimPO, ORPO]


@dataclass
class Step:
    batch: dict[str, Any]
    loss: float
    weights: dict[str, torch.Tensor]  # before the step


@dataclass
class Spy:
    steps: list[Step] = field(default_factory=list)

    def watch(self, monkeypatch: pytest.MonkeyPatch, trainer: type[OnTokenIds]) -> "Spy":
        compute = trainer.compute_loss  # type: ignore[attr-defined]

        def compute_loss(this: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batch = {key: value.tolist() for key, value in inputs.items()}
            weights = {key: value.clone() for key, value in model.state_dict().items()}
            loss = compute(this, model, inputs, *args, **kwargs)
            self.steps.append(Step(batch, loss.item(), weights))
            return loss

        monkeypatch.setattr(trainer, "compute_loss", compute_loss)
        return self


def logps(weights: dict[str, torch.Tensor], batch: dict[str, Any], prefix: str = "") -> list[torch.Tensor]:
    """Log-probabilities of each completion of a batch, without its padding."""
    model = make_model()
    model.load_state_dict(weights)
    found = []
    keys = [f"{prefix}input_ids", f"{prefix}attention_mask", f"{prefix}completion_mask"]
    for ids, attended, trained in zip(*(batch[key] for key in keys), strict=True):
        end, size = sum(attended), sum(trained)
        with torch.no_grad():
            found.append(completion_logps(model, ids[: end - size], ids[end - size : end]))
    return found


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_simpo_loss_equals_an_independent_computation(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    spy = Spy().watch(monkeypatch, ReferenceFreeTrainer)
    SimPO(make_model(), make_tokenizer(), beta=1.5, gamma=0.7, **SETTINGS).update(make_pairs(6))
    assert len(spy.steps) == 5
    for step in spy.steps:
        means = [logp.mean().item() for logp in logps(step.weights, step.batch)]
        half = len(means) // 2
        pairs = zip(means[:half], means[half:], strict=True)
        expected = sum(-math.log(sigmoid(1.5 * good - 1.5 * bad - 0.7)) for good, bad in pairs) / half
        assert step.loss == pytest.approx(expected, abs=1e-5)


def test_orpo_loss_equals_an_independent_computation(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    spy = Spy().watch(monkeypatch, ReferenceFreeTrainer)
    ORPO(make_model(), make_tokenizer(), beta=0.4, **SETTINGS).update(make_pairs(6))
    for step in spy.steps:
        p = [math.exp(logp.mean().item()) for logp in logps(step.weights, step.batch)]
        half = len(p) // 2
        expected = 0.0
        for good, bad in zip(p[:half], p[half:], strict=True):
            ratio = (good / (1 - good)) / (bad / (1 - bad))
            expected += (-math.log(good) - 0.4 * math.log(sigmoid(math.log(ratio)))) / half
        assert step.loss == pytest.approx(expected, abs=1e-5)


def test_the_entropy_of_a_step_is_the_mean_over_completion_tokens(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    spy = Spy().watch(monkeypatch, ReferenceFreeTrainer)
    rows: list[dict[str, float]] = []
    ORPO(make_model(), make_tokenizer(), **SETTINGS).update(make_pairs(6), RoundContext(on_step=rows.append))
    for step, row in zip(spy.steps, rows, strict=True):
        model = make_model()
        model.load_state_dict(step.weights)
        total, count = 0.0, 0
        keys = ("input_ids", "attention_mask", "completion_mask")
        for ids, attended, trained in zip(*(step.batch[key] for key in keys), strict=True):
            end, size = sum(attended), sum(trained)
            with torch.no_grad():
                logps = model(torch.tensor([ids[:end]])).logits[0].log_softmax(dim=-1)[end - size - 1 : end - 1]
            total -= (logps.exp() * logps).sum().item()
            count += size
        assert row["entropy"] == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "trainer"),
    [(DPO, PairTrainer), (KTO, UnpairedTrainer), (SimPO, ReferenceFreeTrainer), (ORPO, ReferenceFreeTrainer)],
)
def test_the_kl_of_a_step_is_per_completion_token_from_the_start(
    monkeypatch: pytest.MonkeyPatch, kind: type[Offline], trainer: type[OnTokenIds]
) -> None:
    spy = Spy().watch(monkeypatch, trainer)
    rows: list[dict[str, float]] = []
    kind(make_model(), make_tokenizer(), **SETTINGS).update(make_pairs(6), RoundContext(on_step=rows.append))
    start = spy.steps[0].weights
    for step, row in zip(spy.steps, rows, strict=True):
        before, now = (torch.cat(logps(weights, step.batch)) for weights in (start, step.weights))
        assert row["kl"] == pytest.approx((before - now).mean().item(), abs=1e-5)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert max(abs(row["kl"]) for row in rows) > 0.01
    if kind is KTO:
        assert max(row["reference_point"] for row in rows) > 0.01


def test_orpo_is_finite_for_a_certain_completion() -> None:
    certain = torch.zeros(1, requires_grad=True)
    loss = ORPO(None).loss(certain, torch.tensor([-1.0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(certain.grad).all()  # type: ignore[arg-type]


def test_kto_loss_equals_an_independent_computation(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    spy = Spy().watch(monkeypatch, UnpairedTrainer)
    method = KTO(make_model(), make_tokenizer(), beta=0.3, desirable_weight=1.5, undesirable_weight=0.5, **SETTINGS)
    method.update(make_pairs(5))
    start = spy.steps[0].weights
    z_seen = []
    for step in spy.steps:
        matched, mismatched = (
            [(now.sum() - before.sum()).item() for now, before in zip(*both, strict=True)]
            for both in ((logps(w, step.batch, prefix) for w in (step.weights, start)) for prefix in ("", "KL_"))
        )
        z = max(0.0, sum(mismatched) / len(mismatched))
        z_seen.append(z)
        expected = 0.0
        for r, label in zip(matched, step.batch["label"], strict=True):
            expected += 1.5 * (1 - sigmoid(0.3 * (r - z))) if label else 0.5 * (1 - sigmoid(0.3 * (z - r)))
        assert step.loss == pytest.approx(expected / len(matched), abs=1e-5)
    assert max(z_seen) > 0.01


def test_kto_rows_are_our_ids_and_no_row_is_mismatched_with_its_sibling(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    spy = Spy().watch(monkeypatch, UnpairedTrainer)
    pairs = make_pairs(6)
    KTO(make_model(), make_tokenizer(), **{**SETTINGS, "epochs": 1}).update(pairs)
    seen, foreign = set(), set()
    for step in spy.steps:
        rows = zip(step.batch["input_ids"], step.batch["attention_mask"], step.batch["label"], strict=True)
        seen |= {(tuple(ids[: sum(mask)]), label) for ids, mask, label in rows}
        rows = zip(step.batch["KL_input_ids"], step.batch["KL_attention_mask"], strict=True)  # type: ignore[assignment]
        foreign |= {tuple(row[0][: sum(row[1])]) for row in rows}
    whole = {(p.prompt_ids + p.prefix_ids + p.chosen_ids, True) for p in pairs}
    whole |= {(p.prompt_ids + p.prefix_ids + p.rejected_ids, False) for p in pairs}
    assert seen == whole
    assert not foreign & {ids for ids, _ in whole}


def rows(*problems: str) -> list[PairRow]:
    return [{"problem_id": problem, "completion_ids": [i]} for i, problem in enumerate(problems)]


@pytest.mark.parametrize(
    ("problems", "clashes"), [("pqrs", 0), ("ppqq", 0), ("pqpq", 0), ("pppq", 2), ("pp", 2), ("pqqrr", 0)]
)
def test_a_mismatched_batch_is_a_rotation_with_the_fewest_siblings(problems: str, clashes: int) -> None:
    batch = rows(*problems)
    donors = mismatch(batch)
    assert sorted(d["completion_ids"] for d in donors) == sorted(r["completion_ids"] for r in batch)
    assert all(row is not donor for row, donor in zip(batch, donors, strict=True))
    assert sum(a["problem_id"] == b["problem_id"] for a, b in zip(batch, donors, strict=True)) == clashes


@pytest.mark.parametrize("prefix_in", ["prompt", "completion"])
def test_rows_of_one_prefix_are_no_neighbours_in_any_epoch(prefix_in: PrefixIn) -> None:
    pairs = [replace(pair, problem_id=f"p{i // 4}") for i, pair in enumerate(make_pairs(8)) for _ in range(2)]
    rows = KTO(make_model(), make_tokenizer(), epochs=2)._rows(pairs, prefix_in)
    assert len(rows) == 64
    for epoch in (rows[:32], rows[32:]):
        assert all(a["start_ids"] != b["start_ids"] for a, b in pairwise(epoch))


def test_kto_leaves_out_a_last_row_that_stands_alone() -> None:
    method = KTO(make_model(), make_tokenizer(), batch_size=3)
    assert [len(method._rows(make_pairs(count))) for count in (2, 3)] == [3, 6]


@pytest.mark.parametrize("kind", METHODS)
def test_training_raises_the_margin(kind: type[Offline]) -> None:
    model, pairs = make_model(), make_pairs(12)

    def margin() -> float:
        total = 0.0
        with torch.no_grad():
            for pair in pairs:
                context = pair.prompt_ids + pair.prefix_ids
                total += completion_logps(model, context, pair.chosen_ids).mean().item()
                total -= completion_logps(model, context, pair.rejected_ids).mean().item()
        return total / len(pairs)

    before = margin()
    kind(model, make_tokenizer(), **{**SETTINGS, "epochs": 4}).update(pairs)
    assert margin() > before + 0.1


@pytest.mark.parametrize("kind", METHODS)
def test_two_rounds_with_adapters(kind: type[Offline]) -> None:
    method = kind(make_model(), make_tokenizer(), lora=2, batch_size=4)
    first, second = (method.update(make_pairs(4, seed)) for seed in (0, 1))
    assert math.isfinite(first["loss"])
    assert math.isfinite(second["loss"])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(KTO, {"beta": 0}), (KTO, {"batch_size": 1}), (SimPO, {"gamma": -1}), (SimPO, {"beta": 0}), (ORPO, {"beta": 0})],
)
def test_impossible_settings_are_errors(kind: type[Offline], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        kind(None, **settings)


def test_the_log_probabilities_of_a_step_are_means_per_token_and_over_its_pairs(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    spy = Spy().watch(monkeypatch, ReferenceFreeTrainer)
    rows: list[dict[str, float]] = []
    SimPO(make_model(), make_tokenizer(), **SETTINGS).update(make_pairs(6), RoundContext(on_step=rows.append))
    for step, row in zip(spy.steps, rows, strict=True):
        means = [logp.mean().item() for logp in logps(step.weights, step.batch)]
        half = len(means) // 2
        margins = [good - bad for good, bad in zip(means[:half], means[half:], strict=True)]
        told = {
            "chosen": sum(means[:half]) / half,
            "rejected": sum(means[half:]) / half,
            "margins": sum(margins) / half,
            "accuracies": sum(margin > 0 for margin in margins) / half,
        }
        assert {name: row[f"logps_per_token/{name}"] for name in told} == pytest.approx(told, abs=1e-5)
