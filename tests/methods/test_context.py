"""What a method takes of a round: its model, its number, where to write, whether it is the last."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from test_online import group, mixed_groups
from tiny_policy import make_model, make_pairs, make_tokenizer, same, state

from gpo.contracts import Method
from gpo.errors import ConfigError
from gpo.methods.dpo import DPO, LOSSES
from gpo.methods.grpo import GRPO
from gpo.methods.kto import KTO
from gpo.methods.offline import Offline
from gpo.methods.online import Online
from gpo.methods.orpo import ORPO
from gpo.methods.ppo import PPO
from gpo.methods.rloo import RLOO
from gpo.methods.simpo import SimPO
from gpo.methods.training import ADAPTER_RATE, FULL_RATE, Training
from gpo.types import ModelRef, Pair, RoundContext

OFFLINE, ONLINE = (DPO, KTO, SimPO, ORPO), (PPO, GRPO, RLOO)
METHODS: tuple[type[Training], ...] = (*OFFLINE, *ONLINE)


def fast(kind: type[Training], **more: Any) -> dict[str, Any]:
    """Settings under which weights move, a few sequences at a time."""
    return {"learning_rate": 1e-2, **({"batch_size": 4} if kind in OFFLINE else {"max_tokens": 64}), **more}


def data(kind: type[Training]) -> Any:
    return make_pairs(8) if kind in OFFLINE else mixed_groups()


@pytest.fixture
def start(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", METHODS)
def test_each_says_what_it_trains_on(kind: Any) -> None:
    assert isinstance(kind(), Method)
    assert kind.trains_on == ("pairs" if issubclass(kind, Offline) else "groups")
    assert issubclass(kind, Offline) != issubclass(kind, Online)


@pytest.mark.parametrize("kind", METHODS)
def test_the_model_of_the_round_is_trained_where_the_method_has_none(kind: Any, start: Path) -> None:
    method = kind(**fast(kind))
    with pytest.raises(ConfigError, match=f"No model to train: give {kind.__name__}"):
        method.update(data(kind))
    method.update(data(kind), RoundContext(model=ModelRef(start, "start")))
    own = kind(start, **fast(kind))
    own.update(data(kind))
    assert same(state(method.policy.model), state(own.policy.model))
    assert not same(state(method.policy.model), state(make_model()))


@pytest.mark.parametrize("kind", METHODS)
def test_a_model_in_memory_of_a_round_is_not_written_to(kind: Any) -> None:
    model = make_model()
    method = kind(**fast(kind))
    method.update(data(kind), RoundContext(model=ModelRef(model, "m", tokenizer=make_tokenizer())))
    assert same(state(model), state(make_model()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not same(state(method.policy.model), state(model))


def test_a_reference_in_memory_is_not_written_to() -> None:
    reference = make_model(seed=1)
    context = RoundContext(reference=ModelRef(reference, "m", tokenizer=make_tokenizer()))
    GRPO(make_model(), make_tokenizer(), beta=0.1).update(mixed_groups(), context)
    assert all(parameter.requires_grad for parameter in reference.parameters())


@pytest.mark.parametrize("kind", [DPO, PPO])
def test_another_model_of_a_round_is_begun_with_and_the_same_is_gone_on_with(kind: Any, start: Path) -> None:
    first, other = (RoundContext(model=ModelRef(source, "m")) for source in (start, str(start)))
    twice, anew, once = kind(**fast(kind)), kind(**fast(kind)), kind(**fast(kind))
    for method, contexts in ((twice, (first, first)), (anew, (first, other)), (once, (first,))):
        for context in contexts:
            method.update(data(kind), context)
    assert same(state(anew.policy.model), state(once.policy.model))
    assert not same(state(twice.policy.model), state(once.policy.model))
    assert (twice.updates, anew.updates) == (2, 1)


@pytest.mark.parametrize("kind", METHODS)
def test_random_numbers_and_rows_are_those_of_the_round(kind: Any, start: Path, tmp_path: Path) -> None:
    """Two updates of one method have the batches of rounds 1 and 2 of two methods."""
    settings = fast(kind, learning_rate=1e-10, epochs=2)  # the weights hardly move
    one = kind(start, **settings)
    for _ in range(2):
        one.update(data(kind), RoundContext(metrics_path=tmp_path / "one.jsonl"))
    for number in (1, 2):
        context = RoundContext(ModelRef(start, "s"), number=number, metrics_path=tmp_path / "two.jsonl")
        kind(**settings).update(data(kind), context)
    found, expected = (rows(tmp_path / f"{name}.jsonl") for name in ("two", "one"))
    assert [row["update"] for row in found] == [row["update"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.parametrize("kind", [DPO, GRPO])
def test_paths_may_be_texts_and_data_may_come_one_by_one(kind: Any, start: Path, tmp_path: Path) -> None:
    places: dict[str, Any] = {name: str(tmp_path / name) for name in ("images", "work_dir", "metrics_path")}
    one_by_one, whole = kind(**fast(kind)), kind(**fast(kind))
    metrics = one_by_one.update(iter(data(kind)), RoundContext(ModelRef(start, "s"), **places))
    assert metrics == pytest.approx(whole.update(data(kind), RoundContext(ModelRef(start, "s"))))
    assert rows(tmp_path / "metrics_path")
    one_by_one.save(str(tmp_path / "saved"))
    assert same(state(kind(tmp_path / "saved").policy.model), state(whole.policy.model))


@pytest.mark.parametrize("kind", [DPO, GRPO])
def test_a_training_that_is_done_again_replaces_its_rows_and_later_ones(kind: Any, start: Path, tmp_path: Path) -> None:
    contexts = [
        RoundContext(ModelRef(start, "s"), number=number, metrics_path=tmp_path / "training.jsonl")
        for number in (1, 2, 3)
    ]
    for context in contexts:
        kind(**fast(kind)).update(data(kind), context)
    whole = (tmp_path / "training.jsonl").read_bytes()
    (tmp_path / "training.jsonl").write_bytes(whole + b'{"update": 7, "lo')
    kind(**fast(kind)).update(data(kind), contexts[1])
    assert whole.startswith((tmp_path / "training.jsonl").read_bytes())
    assert {row["update"] for row in rows(tmp_path / "training.jsonl")} == {0, 1}


@pytest.mark.parametrize("kind", METHODS)
def test_without_data_the_update_is_skipped_and_recorded(
    kind: Any, start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_step(row: dict[str, float]) -> None:
        raise AssertionError("there is no step")

    file = tmp_path / "training.jsonl"
    context = RoundContext(ModelRef(start, "s"), sampled={"reward": 1.0}, metrics_path=file, on_step=on_step)
    method = kind(**fast(kind))
    metrics = method.update([], context)
    assert (metrics["skipped"], metrics["steps"]) == (1.0, 0.0)
    assert metrics["pairs" if kind in OFFLINE else "rows"] == 0.0
    assert rows(file) == [{"update": 0, "reward": 1.0, **metrics}]
    assert ("No pair" if kind in OFFLINE else "No row") in caplog.text
    method.save(tmp_path / "saved")
    assert same(state(kind(tmp_path / "saved").policy.model), state(make_model()))
    method.update(data(kind), RoundContext(ModelRef(start, "s"), metrics_path=file))
    assert [row["update"] for row in rows(file)] == [0] + [1] * (len(rows(file)) - 1)


def test_pairs_that_are_all_too_long_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(context=3)
    metrics = DPO(model, make_tokenizer()).update(make_pairs(12))
    assert metrics == {"skipped": 1.0, "pairs": 0.0, "pairs_too_long": 12.0, "steps": 0.0}
    assert same(state(model), state(make_model(context=3)))
    assert "All 12 pairs are longer than 3 tokens, the shortest" in caplog.text


@pytest.mark.parametrize("kind", ONLINE)
def test_equal_rewards_are_skipped(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    method = kind(make_model(), make_tokenizer(), learning_rate=1.0)
    with caplog.at_level(logging.WARNING):
        metrics = method.update([group([1], [], ([3], 1.0), ([4], 1.0))])
    assert metrics == {
        "skipped": 1.0, "reward": 1.0, "reset_share": 0.0, "rows": 2.0, "rows_left_out": 0.0, "steps": 0.0
    }  # fmt: skip
    assert same(state(method.policy.model), state(make_model()))
    assert "Nothing to learn: the rewards of all 2" in caplog.text
    if kind is PPO:
        assert not any(parameter.any() for parameter in method.head.parameters())


def test_a_reference_is_that_of_the_start_although_the_first_update_was_skipped() -> None:
    method = GRPO(make_model(), make_tokenizer(), beta=0.1, learning_rate=1e-3)
    assert method.update([])["skipped"] == 1.0
    assert method.update(mixed_groups())["kl_reference"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", METHODS)
def test_adapters_are_merged_after_the_last_round_only(kind: Any, start: Path, tmp_path: Path) -> None:
    for last in (False, True):
        method = kind(lora=2, merge=True, **fast(kind))
        method.update(data(kind), RoundContext(ModelRef(start, "s"), last=last))
        method.save(tmp_path / f"{last}")
        assert (tmp_path / f"{last}" / "adapter_config.json").exists() == (not last)


@pytest.mark.parametrize("kind", METHODS)
def test_the_default_learning_rate_is_ten_times_as_high_for_adapters(kind: Any) -> None:
    rates = [kind(make_model(), make_tokenizer(), lora=lora).rate for lora in (None, 2)]
    assert rates == [FULL_RATE, ADAPTER_RATE] == [1e-6, 1e-5]
    assert kind(make_model(), make_tokenizer(), learning_rate=0.5).rate == 0.5


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("settings", [{"learning_rate": -1}, {"max_length": 1}, {"lora": 0}, {"weight_decay": -1}])
def test_impossible_settings_are_errors_before_a_model_is_loaded(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        kind(**settings)


def test_an_unknown_loss_is_an_error_that_lists_those_of_trl() -> None:
    with pytest.raises(ConfigError, match=r"Unknown loss_type 'foo'\. Known: aot, aot_unpaired, .*sppo_hard\."):
        DPO(loss_type="foo")


@pytest.mark.parametrize("loss_type", LOSSES)
def test_trl_takes_every_loss_that_is_listed(loss_type: str) -> None:
    pairs: list[Pair] = make_pairs(4)
    metrics = DPO(make_model(), make_tokenizer(), loss_type=loss_type, **fast(DPO)).update(pairs)
    assert metrics["steps"] == 1


@pytest.mark.parametrize(("kind", "settings"), [(GRPO, {"kl_in": "nowhere"}), (RLOO, {"aggregate": "all"})])
def test_an_unknown_choice_is_an_error(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Unknown {next(iter(settings))}"):
        kind(**settings)


@pytest.mark.parametrize("name", ["learning_rate", "max_grad_norm", "weight_decay", "beta"])
@pytest.mark.parametrize("kind", [DPO, GRPO])
def test_settings_that_are_not_finite_are_refused(kind: Any, name: str) -> None:
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"{name} must be a finite number, got {value}"):
            kind(**{name: value})


@pytest.mark.parametrize("kind", [DPO, GRPO])
@pytest.mark.parametrize("setting", [{"weight_decay": 5.0}, {"max_grad_norm": 1e-12}])
def test_settings_of_the_optimizer_reach_it(kind: Any, setting: dict[str, float]) -> None:
    trained = [kind(make_model(), make_tokenizer(), **fast(kind, **more)) for more in ({}, setting)]
    for each in trained:
        each.update(data(kind))
    assert not same(*(state(each.policy.model) for each in trained))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(GRPO, {}), (GRPO, {"beta": 0.1}), (RLOO, {"beta": 0.1}), (RLOO, {"beta": 0.1, "epochs": 2}), (PPO, {})],
)
def test_passes_without_gradients_are_told_as_they_are_made(
    kind: type[Online], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    look_up = Online._set
    monkeypatch.setattr(Online, "_set", lambda self, name, *rest: made.append(name) or look_up(self, name, *rest))
    method = kind(make_model(), make_tokenizer(), **fast(kind, **settings))
    method.update(mixed_groups())
    several, reference = method.epochs * method.minibatches > 1, method.beta > 0  # what advice counts by itself
    assert len(made) == several + reference + method.extra_passes
