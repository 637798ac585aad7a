import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import EOS, completion_logps, make_model, make_pairs, make_tokenizer, same, state

from gpo.contracts import OfflineMethod
from gpo.errors import ConfigError, EngineError
from gpo.methods.dpo import DPO
from gpo.methods.trainers import order_by_length
from gpo.methods.update_checkpoint import last_checkpoint
from gpo.types import Pair, RoundContext


def dpo(model: Any, **settings: Any) -> DPO:
    return DPO(model, make_tokenizer(), **{"batch_size": 4, "learning_rate": 1e-3, "warmup": 0.0, **settings})


def dpo_loss(policy: Any, reference: Any, pair: Pair, beta: float) -> float:
    """Equation 7 of the DPO paper for one pair, one sequence at a time."""
    context = pair.prompt_ids + pair.prefix_ids
    margin = 0.0
    for completion, sign in ((pair.chosen_ids, 1), (pair.rejected_ids, -1)):
        with torch.no_grad():
            now, before = (completion_logps(model, context, completion).sum().item() for model in (policy, reference))
        margin += sign * (now - before)
    return math.log1p(math.exp(-beta * margin))


def first_losses(path: Path) -> dict[int, float]:
    """The loss of the first step of each update."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["update"]: row["loss"] for row in rows if row["step"] == 1}


def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Every batch that reaches the model in training."""
    from gpo.methods.trainers import PairTrainer

    seen: list[dict[str, torch.Tensor]] = []
    compute = PairTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({key: value.clone() for key, value in inputs.items()})
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(PairTrainer, "compute_loss", spy)
    return seen


def rows_of(seen: Sequence[dict[str, torch.Tensor]]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(context, completion) of each sequence in the batches."""
    found = set()
    for batch in seen:
        for ids, attended, trained in zip(
            batch["input_ids"].tolist(),
            batch["attention_mask"].tolist(),
            batch["completion_mask"].tolist(),
            strict=True,
        ):
            length, completion = sum(attended), sum(trained)
            found.add((tuple(ids[: length - completion]), tuple(ids[length - completion : length])))
    return found


def test_it_is_a_method() -> None:
    assert isinstance(dpo(make_model()), OfflineMethod)


def test_our_token_ids_reach_the_model_and_an_end_is_there_only_if_it_was_sampled(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    pairs, tokenizer = make_pairs(6), make_tokenizer()
    seen = batches(monkeypatch)
    dpo(make_model()).update(pairs)
    expected = {(p.prompt_ids + p.prefix_ids, ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)}
    assert rows_of(seen) == expected
    assert {ids[-1] == EOS for _, ids in expected} == {True, False}
    # The text of prompt + completion has one token less: the line breaks where they meet are merged.
    text = pairs[0].prompt + pairs[0].prefix + pairs[0].rejected
    assert len(tokenizer.encode(text)) < len(pairs[0].prompt_ids + pairs[0].prefix_ids + pairs[0].rejected_ids)


def test_the_loss_equals_an_independent_computation() -> None:
    pairs = make_pairs(4)
    model = make_model()
    reference = copy.deepcopy(model)
    method = dpo(model, beta=0.3, epochs=3)
    losses = []

    def on_step(row: dict[str, float]) -> None:
        losses.append((row["loss"], sum(dpo_loss(model, reference, p, 0.3) for p in pairs) / 4))

    method.update(pairs, RoundContext(on_step=on_step))
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-6)
    # The loss of a step is of the weights before it: the weights after step k are those of step k + 1.
    for (_, after), (before, _) in pairwise(losses):
        assert before == pytest.approx(after, abs=1e-5)
    assert losses[-1][0] < 0.6


def test_the_reference_of_round_two_is_the_model_after_round_one(tmp_path: Path) -> None:
    method = dpo(make_model(), epochs=4)
    for _ in range(2):
        method.update(make_pairs(4), RoundContext(metrics_path=tmp_path / "m.jsonl"))
    assert first_losses(tmp_path / "m.jsonl") == {0: pytest.approx(math.log(2), abs=1e-6)} | {
        1: pytest.approx(math.log(2), abs=1e-6)
    }


def test_a_reference_reloaded_from_the_path_is_detected(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The planted bug: TRL's default reference is what the configuration's path holds."""
    from transformers import AutoModelForCausalLM

    from gpo.methods.trainers import PairTrainer

    make_model().save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")

    precompute = PairTrainer._precompute_ref_logps

    def reload(self: Any, *args: Any) -> Any:
        current, self.model = self.model, AutoModelForCausalLM.from_pretrained(self.model.config._name_or_path)
        try:
            return precompute(self, *args)
        finally:
            self.model = current

    monkeypatch.setattr(PairTrainer, "_precompute_ref_logps", reload)
    settings = {"batch_size": 4, "learning_rate": 1e-3, "epochs": 4}
    method = DPO(tmp_path / "start", **settings)  # type: ignore[arg-type]
    for _ in range(2):
        method.update(make_pairs(4), RoundContext(metrics_path=tmp_path / "m.jsonl"))
    losses = first_losses(tmp_path / "m.jsonl")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses[1] - math.log(2)) > 0.01


def test_training_raises_the_margin_of_chosen_over_rejected() -> None:
    model = make_model()
    reference = copy.deepcopy(model)
    pairs = make_pairs(16)
    metrics = dpo(model, epochs=4).update(pairs)
    assert metrics["steps"] == 16
    assert metrics["rewards/margins"] > 0.5
    assert all(dpo_loss(model, reference, pair, 0.1) < math.log(2) for pair in pairs)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    models = [make_model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        dpo(model, seed=seed).update(make_pairs(12))
    first, second, other = (state(model) for model in models)
    assert same(first, second)
    assert not same(first, other)


class Killed(BaseException):
    pass


def kill_at(step: int) -> Any:
    def on_step(row: dict[str, float]) -> None:
        if row["step"] == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_update_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path, step: int) -> None:
    pairs = make_pairs(16)
    settings = {"save_steps": 2, "epochs": 2, "lora": None}
    whole = dpo(make_model(), **settings)
    expected = whole.update(pairs, RoundContext(metrics_path=tmp_path / "whole.jsonl", work_dir=tmp_path / "w"))

    context = RoundContext(metrics_path=tmp_path / "killed.jsonl", work_dir=tmp_path / "k", on_step=kill_at(step))
    with pytest.raises(Killed):
        dpo(make_model(), **settings).update(pairs, context)
    assert (last_checkpoint(tmp_path / "k") is None) == (step == 1)
    resumed = dpo(make_model(), **settings)
    steps: list[float] = []
    context = replace(context, on_step=lambda row: steps.append(row["step"]))
    assert resumed.update(pairs, context) == expected
    assert steps[0] == (1 if step == 1 else 5)
    assert same(state(whole.policy.model), state(resumed.policy.model))
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(("seconds", "begins"), [(3600.0, 1), (0.0, 5)])
def test_slow_steps_are_saved_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, begins: int
) -> None:
    pairs = make_pairs(16)
    monkeypatch.setattr("gpo.methods.update_checkpoint.SAVE_SECONDS", seconds)
    monkeypatch.setattr("gpo.methods.update_checkpoint.SAVE_SHARE", math.inf)
    context = RoundContext(work_dir=tmp_path / "work", on_step=kill_at(5))
    with pytest.raises(Killed):
        dpo(make_model(), epochs=2).update(pairs, context)
    steps: list[float] = []
    resumed = dpo(make_model(), epochs=2).update(pairs, replace(context, on_step=lambda row: steps.append(row["step"])))
    assert steps[0] == begins
    assert resumed == dpo(make_model(), epochs=2).update(pairs)


def test_a_finished_update_is_not_trained_again_until_it_is_saved(tmp_path: Path) -> None:
    pairs = make_pairs(8)
    first, again = dpo(make_model()), dpo(make_model())
    expected = first.update(pairs, RoundContext(work_dir=tmp_path / "w"))
    assert again.update(pairs, RoundContext(work_dir=tmp_path / "w", on_step=kill_at(1))) == expected
    assert same(state(first.policy.model), state(again.policy.model))
    again.save(tmp_path / "model")
    assert list((tmp_path / "w").iterdir()) == []


def test_checkpoints_of_another_update_are_not_taken(tmp_path: Path) -> None:
    context = RoundContext(work_dir=tmp_path / "w")
    dpo(make_model(), save_steps=1).update(make_pairs(8), context)
    other = dpo(make_model(), save_steps=1)
    fresh = dpo(make_model())
    other.update(make_pairs(8, seed=1), context)
    fresh.update(make_pairs(8, seed=1))
    assert same(state(other.policy.model), state(fresh.policy.model))


def test_what_is_saved_is_what_was_trained(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    method = dpo(make_model())
    method.update(make_pairs(4))
    method.save(tmp_path / "a" / "model")
    method.save(tmp_path / "a" / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    assert same(state(loaded), state(method.policy.model))
    assert AutoTokenizer.from_pretrained(tmp_path / "a" / "model").encode("a\n\nb") == make_tokenizer().encode("a\n\nb")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]
    assert "forward" not in vars(method.policy.model)


def test_adapters_train_save_and_merge(tmp_path: Path) -> None:
    base = make_model()
    base.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    method = DPO(tmp_path / "base", batch_size=4, learning_rate=1e-2, epochs=2, lora=4)
    for _ in range(3):
        method.update(make_pairs(8), RoundContext(metrics_path=tmp_path / "m"))
    assert first_losses(tmp_path / "m") == {i: pytest.approx(math.log(2), abs=1e-6) for i in range(3)}
    method.save(tmp_path / "adapters")
    method.merge = True
    method.save(tmp_path / "merged")
    assert (tmp_path / "adapters" / "adapter_config.json").is_file()
    pair = make_pairs(1)[0]
    policies = [method.policy.model, *(DPO(tmp_path / name).policy.model for name in ("adapters", "merged", "base"))]
    with torch.no_grad():
        logps = [completion_logps(policy, pair.prompt_ids, pair.chosen_ids).sum().item() for policy in policies]
    assert logps[1] == pytest.approx(logps[0], abs=1e-5)
    assert logps[2] == pytest.approx(logps[0], abs=1e-4)
    assert abs(logps[3] - logps[0]) > 0.01


def test_pairs_that_are_too_long_are_counted() -> None:
    metrics = dpo(make_model(), max_length=16).update(make_pairs(12))
    assert metrics["pairs"] + metrics["pairs_too_long"] == 12
    assert metrics["pairs_too_long"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0},
        {"learning_rate": 0.0},
        {"learning_rate": -1},
        {"learning_rate": math.nan},
        {"epochs": 0},
        {"warmup": 3},
        {"batch_size": -1},
        {"schedule": "liner"},
        {"lora": 0},
        {"max_length": 1},
        {"weight_decay": -1},
        {"loss_type": "sigmoidal"},
        {"loss_type": "exo_pair"},
    ],
)
def test_impossible_settings_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        dpo(None, **settings)


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No causal language model in"):
        _ = DPO(tmp_path / "nothing").policy
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        _ = DPO(make_model()).policy
    with pytest.raises(ConfigError, match=r"No model to train: give DPO\(model=\.\.\.\)"):
        _ = DPO().policy


def test_the_order_has_every_row_in_every_epoch_and_even_batches() -> None:
    lengths = [7 * i % 50 for i in range(50)]
    order = order_by_length(lengths, batch_size=8, epochs=3, seed=0)
    assert sorted(order) == sorted(list(range(50)) * 3)
    spread = [max(b) - min(b) for b in ([lengths[i] for i in order[k : k + 8]] for k in range(0, 144, 8))]
    assert max(spread) <= 7
    assert order != order_by_length(lengths, batch_size=8, epochs=3, seed=1)
