import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from gpo.config.components import Spec, made
from gpo.config.options import resolve, with_defaults
from gpo.config.parse import parse
from gpo.config.run import RunConfig, describe, differences
from gpo.errors import ConfigError
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.rollout.segmenters import Newline
from gpo.toy import ChainEngine
from gpo.types import ModelRef
from toy import ToyMethod

TOY = {
    "estimator": "monte_carlo",
    "task": "toy:ToyTask",
    "engine": "gpo.toy:ChainEngine",
    "method": "toy:ToyMethod",
}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "8", 8),
        (float, "2e-5", 2e-5),
        (bool, "true", True),
        (bool, "False", False),
        (str, "8", "8"),
        (Any, "runs/a", "runs/a"),
        (Path, "a/b", Path("a/b")),
        (int | None, "none", None),
        (int | None, "3", 3),
        (int | str, "x", "x"),
        (Literal["before", "after"], "after", "after"),
        (tuple[str, ...], "a, b", ("a", "b")),
        (tuple[int, ...], "[1, 2]", (1, 2)),
    ],
)
def test_option_texts_become_values(kind: Any, text: str, value: Any) -> None:
    assert parse(kind, text, "--x") == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (int, "many", r"--x is 'many', expected a whole number\."),
        (bool, "maybe", r"--x is 'maybe', expected true or false\."),
        (int | None, "few", r"--x is 'few', expected a whole number or none\."),
        (Literal["before", "after"], "at", r"--x is 'at', expected one of before, after\."),
        (tuple[int, ...], "1,b", r"--x is '1,b', expected a comma-separated list of a whole number\."),
    ],
)
def test_a_text_of_another_type_is_refused(kind: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(kind, text, "--x")


def test_dotted_options_reach_the_components() -> None:
    config = resolve(
        {**TOY, "estimator.rollouts": "8", "engine.padding": "3", "problems": "5", "arms.random.seed": "2"}
    )
    described = describe(config)
    assert described["arms"]["gpo"]["rollouts"] == 8
    assert described["arms"]["gpo"]["name"] == "monte_carlo"
    assert described["arms"]["random"] == {"name": "random_matched", "arm": "gpo", "seed": 2, "search": None}
    assert described["engine"]["padding"] == 3
    assert described["problems"] == 5


def test_a_stored_configuration_comes_back_the_same() -> None:
    stored = describe(resolve({**TOY, "arms": "plain,gpo", "estimator.rollouts": "8", "test_problems": "none"}))
    assert describe(resolve({}, stored)) == stored
    changed = describe(resolve({"estimator.rule": "drop"}, stored))
    assert differences(stored, changed) == ['arms.gpo.rule was "advantage", now "drop"']


def test_another_component_forgets_the_settings_of_the_one_before() -> None:
    stored = describe(resolve({**TOY, "arms": "gpo", "estimator.rollouts": "8"}))
    assert describe(resolve({"estimator": "random_unsearched"}, stored))["arms"]["gpo"] == {
        "name": "random_unsearched",
        "seed": None,
    }


def test_arms_can_be_chosen_and_added() -> None:
    assert list(resolve({**TOY, "arms": "plain,gpo"}).arms) == ["plain", "gpo"]
    assert list(resolve({**TOY, "arms.paper": "monte_carlo"}).arms) == ["plain", "random", "gpo", "paper"]
    with pytest.raises(ConfigError, match=r"Which estimator\? Give --arms\.best: .*monte_carlo"):
        resolve({**TOY, "arms": "plain,best"})


def test_a_preset_sets_all_settings_and_options_change_it() -> None:
    options = {**TOY, "estimator.preset": "authors", "estimator.rollouts": "6"}
    described = describe(resolve(options))["arms"]["gpo"]
    assert described["rule"] == "authors"
    assert described["min_step_tokens"] == 30
    assert described["rollouts"] == 6
    with pytest.raises(
        ConfigError, match=r"Unknown preset of estimator 'monte_carlo' 'autors'.*'authors'\? Known: authors, paper"
    ):
        resolve({**TOY, "estimator.preset": "autors"})
    with pytest.raises(
        ConfigError,
        match=r"'adaptive' has no presets, got 'paper'. That is one of monte_carlo: --estimator monte_carlo",
    ):
        resolve({**TOY, "estimator": "adaptive", "estimator.preset": "paper"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator.rolouts": "8"},
            r"Unknown setting of estimator 'monte_carlo' 'rolouts'\. Did you mean 'rollouts'\?",
        ),
        ({"problem": "8"}, r"Unknown option '--problem'\. Did you mean '--problems'\?"),
        (
            {"method": "dpo", "learning_rate": "1e-4"},
            r"'--learning_rate'\. It is called --method\.learning_rate here",
        ),
        ({"num_generations": "8"}, r"'--num_generations'\. It is called --rollouts here"),
        ({"method": "dpo", "lr": "1e-4"}, r"'--lr'\. It is called --method\.learning_rate here"),
        (
            {"method": "dpo", "method.report_to": "wandb"},
            r"'report_to' of method 'dpo'\. It is called --method\.trackers here",
        ),
        ({"method": "dpo", "method.num_train_epochs": "2"}, r"It is called --method\.epochs here"),
        ({"method": "dpo", "method.lora_alpha": "32"}, r"It is called --method\.lora here"),
        ({"method": "dpo", "method.lora_r": "8"}, r"It is called --method\.lora here"),
        (
            {"method": "dpo", "per_device_train_batch_size": "8"},
            r"'--per_device_train_batch_size'\. It is called --method\.batch_size here",
        ),
        ({"method": "grpo", "epsilon_high": ".3"}, r"It is called --method\.clip_high here"),
        ({"method": "dpo", "epsilon_high": ".3"}, r"Unknown option '--epsilon_high'\. Known:"),
        ({"model_name_or_path": "x"}, r"It is called --model here"),
        ({"estimator": "monte"}, r"Unknown estimator 'monte'\..* Known: .*monte_carlo"),
        ({"task": "nowhere:Task"}, r"There is no task 'nowhere:Task': No module named 'nowhere'"),
        ({"budget": "0.5"}, r"budget is 0\.5, expected a number above 1"),
        ({"budget": "inf"}, r"--budget is 'inf', expected a number"),
        ({"temperature": "0"}, r"temperature is 0\.0, expected a number above 0"),
        ({"rollouts": "0"}, r"rollouts is 0, expected at least 1"),
        ({"locate_share": "1"}, r"locate_share is 1\.0, expected a share"),
        ({"test_problems": "-1"}, r"test_problems is -1, expected at least 0"),
        ({"test_skip": "-1"}, r"test_skip is -1, expected a number of test problems of at least 0"),
        ({"arms.a/b": "none"}, r"An arm cannot be called 'a/b'"),
    ],
)
def test_bad_settings_are_refused_by_name(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({**TOY, **options})


@dataclass
class Needy:
    """Has a setting without a default."""

    model: Any
    size: int = 1

    @property
    def model_ref(self) -> ModelRef:
        return ModelRef(self.model, "needy", tokenizer="words")


@pytest.mark.parametrize("model", [None, 5, 0.5, True, ""])
def test_what_names_no_model_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match=f"model is {model!r}, expected a directory or a hub id, or reasoner"):
        RunConfig(model=model)


def test_a_run_gives_what_was_not_set() -> None:
    assert made("engine", Spec("engine", "test_config:Needy"), model="m", other=1).model == "m"
    assert made("engine", Spec("engine", "test_config:Needy", {"model": "own"}), model="m").model == "own"
    assert made("engine", Spec("engine", "test_config:Needy", {"model": None}), model="m").model == "m"
    with pytest.raises(ConfigError, match=r"needs --engine\.model"):
        made("engine", "test_config:Needy")


def test_an_instance_is_copied_and_described() -> None:
    estimator = MonteCarlo(rollouts=2)
    assert made("estimator", estimator) == estimator
    needy = Needy(object())
    assert made("engine", needy, model="m").model is needy.model
    config = RunConfig("toy:ToyTask", engine=needy, method=Spec("method", "toy:ToyMethod"), segmenter=Newline())  # type: ignore[arg-type]
    described = describe(config)
    assert described["engine"] == {"name": "test_config:Needy", "model": "<object>", "size": 1}
    assert described["segmenter"]["name"] == "newline"


def test_the_embedded_model_has_settings_of_its_own_for_a_method() -> None:
    def method(**options: str) -> dict[str, Any]:
        described: dict[str, Any] = describe(resolve(options))["method"]
        return described

    assert method(method="ppo")["learning_rate"] == 3e-4
    assert method(method="kto")["learning_rate"] == 1e-4
    assert method(method="grpo")["minibatches"] == 4
    assert method(method="ppo", **{"method.learning_rate": "1e-6"})["learning_rate"] == 1e-6
    assert method(method="ppo", model="another")["learning_rate"] is None
    assert method() == method(method="dpo")
    assert method(model="reader") == method()


def test_another_model_is_trained_by_adapters_in_small_batches_and_cut_at_sentences() -> None:
    def of(**options: str) -> dict[str, Any]:
        return describe(resolve({"model": "org/name", **options}))

    dpo, grpo = of()["method"], of(method="grpo")["method"]
    assert (dpo["lora"], dpo["gradient_checkpointing"]) == (16, True)
    assert dpo["batch_size"] * dpo["gradient_accumulation"] == describe(RunConfig())["method"]["batch_size"]
    assert (grpo["lora"], grpo["gradient_checkpointing"]) == (16, True)
    assert of()["segmenter"]["sentence_tokens"] == 30
    assert of(segmenter="sentence")["segmenter"]["name"] == "sentence"
    assert of(**{"method.lora": "none", "method.batch_size": "16"})["method"]["lora"] is None
    assert describe(RunConfig())["method"]["lora"] is None
    assert describe(RunConfig())["segmenter"]["sentence_tokens"] is None
    embedded = describe(resolve({"model": "reasoner"}, of()))
    assert (embedded["method"]["lora"], embedded["method"]["batch_size"]) == (None, 16)
    assert embedded["segmenter"] == describe(RunConfig())["segmenter"]
    in_memory = describe(RunConfig(engine=ChainEngine()))
    assert in_memory["method"]["lora"] is None


def test_python_and_the_command_line_have_the_same_defaults() -> None:
    assert RunConfig() == resolve({})
    assert describe(RunConfig()) == describe(resolve({}))
    assert describe(RunConfig(method="grpo")) == describe(resolve({"method": "grpo"}))
    other = Spec("engine", "hf", {"model": "another"})
    assert describe(RunConfig(engine=other)) == describe(resolve({"engine.model": "another"}))
    assert describe(RunConfig(engine=other))["method"]["learning_rate"] is None
    assert RunConfig(model="another").piece_seconds == 240.0
    assert RunConfig().piece_seconds == 0.0


def test_another_model_does_not_keep_the_settings_of_the_embedded_one() -> None:
    assert describe(replace(RunConfig(), model="org/name"))["method"]["learning_rate"] is None
    given = RunConfig(method=Spec("method", "dpo", {"beta": 0.5}))
    assert describe(given)["method"]["beta"] == 0.5
    assert describe(given)["method"]["learning_rate"] == 3e-4


def test_a_whole_number_of_a_setting_with_a_fraction_is_written_as_it_is_read() -> None:
    described = describe(RunConfig(arms={"gpo": "adaptive", "own": Adaptive(rollouts=3)}))
    again = describe(resolve({}, described))
    assert json.dumps(described) == json.dumps(again)


def test_a_configuration_of_an_earlier_version_is_read() -> None:
    stored = describe(resolve(TOY))
    old = {key: value for key, value in stored.items() if key not in ("pairs", "credit", "launch", "piece_seconds")}
    old["method"] = {**old["method"], "pairs_per_start": 3, "truncated": "excluded"}
    old["arms"] = {"random": {"name": "random", "seed": 1}, "gpo": {"name": "adaptive", "critic": None}}
    read = with_defaults(old)
    assert read["pairs"]["per_start"] == 3
    assert read["pairs"]["truncated"] == "excluded"
    assert "pairs_per_start" not in read["method"]
    assert read["arms"] == {
        "random": {"name": "random_unsearched", "seed": 1},
        "gpo": {"name": "adaptive", "critic": "none"},
    }
    # Tasks that give an instruction had no turn of the system; one's own may have a setting that is called so or not.
    task = {"name": "file", "instruction": "Think."}
    assert with_defaults(old | {"task": task})["task"] == {**task, "system": ""}
    own = {"name": "mine:Task", "instruction": "Think."}
    assert with_defaults(old | {"task": own})["task"] == own
    # Plain sampling took questions with mixed outcomes first before it had an order.
    plain = {"arms": {"plain": {"name": "none"}, "even": {"name": "none", "order": "even"}}}
    assert with_defaults(old | plain)["arms"] == {
        "plain": {"name": "none", "order": "mixed"},
        "even": {"name": "none", "order": "even"},
    }
    assert describe(resolve(TOY))["arms"]["plain"]["order"] == "even"
    with pytest.raises(ConfigError, match=r"--method\.pairs_per_start is now --pairs\.per_start"):
        resolve({"method": "dpo", "method.pairs_per_start": "8"})


def test_what_is_no_class_is_not_called() -> None:
    with pytest.raises(
        ConfigError, match=r"The task 'os:abort' is a builtin_function_or_method\. Expected module:Class"
    ):
        Spec("task", "os:abort").make()


def test_code_in_a_strangers_configuration_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpo.config.trust import refuse_strangers, remember

    stored = describe(resolve(TOY))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"names what is no part of GPO: toy:ToyMethod, toy:ToyTask"):
        refuse_strangers(tmp_path, stored)
    refuse_strangers(tmp_path, stored, TOY.values())  # the command names it again
    remember(tmp_path)
    refuse_strangers(tmp_path, stored)
    (tmp_path / "config.json").write_text("{ }")  # somebody changed it
    with pytest.raises(ConfigError, match="add --trust"):
        refuse_strangers(tmp_path, stored)
    monkeypatch.setenv("GPO_TRUST", "1")
    refuse_strangers(tmp_path, stored)


def test_an_option_of_an_arm_that_does_not_run_is_refused_by_the_name_it_was_given() -> None:
    with pytest.raises(
        ConfigError, match=r"--estimator is for arm 'gpo', and --arms has plain only\. Add gpo to --arms"
    ):
        resolve({"arms": "plain", "estimator": "adaptive"})
    with pytest.raises(ConfigError, match=r"--arms\.own is for arm 'own'"):
        resolve({"arms": "plain,gpo", "arms.own": "adaptive"})


def test_not_a_number_is_not_a_number() -> None:
    for text in ("nan", "inf", "-inf", "1e999"):
        with pytest.raises(ConfigError, match=rf"--estimator\.rollouts is '{text}', expected a number"):
            parse(float, text, "--estimator.rollouts")


@dataclass
class Truncating(ToyMethod):
    """A method of one's own with a setting that those of GPO once had."""

    truncated: int = 3


def test_a_setting_of_ones_own_method_is_not_taken_for_one_of_pairs() -> None:
    stored = describe(resolve({**TOY, "method": "test_config:Truncating", "method.truncated": "5"}))
    assert stored["method"]["truncated"] == 5
    assert differences(with_defaults(stored), stored) == []
