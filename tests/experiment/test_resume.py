"""What a run that goes on may find in its directory, and what it makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpo.cli import main
from gpo.config.components import Spec
from gpo.config.options import resolve
from gpo.config.run import RunConfig, describe, differences
from gpo.errors import ConfigError, DataError
from gpo.experiment.changes import FREE
from gpo.experiment.reuse import take_samples
from gpo.experiment.run import Run
from gpo.types import Stage
from toy import ToyTask, toy_config


def test_pairs_of_another_credit_are_built_anew(tmp_path: Path) -> None:
    tails = Run(tmp_path, toy_config()).build("gpo")
    steps = Run(tmp_path, toy_config(credit="tree")).build("gpo")
    assert tails
    assert steps
    assert {pair.chosen_ids for pair in tails} != {pair.chosen_ids for pair in steps}
    assert all("certainty" in pair.provenance for pair in steps)


class OneMeaning(ToyTask):
    """All steps say the same."""

    def meaning(self, step: str) -> str:
        return "anything"


def test_a_run_merges_the_steps_that_its_task_takes_for_one(tmp_path: Path) -> None:
    assert Run(tmp_path / "apart", toy_config(credit="tree")).build("gpo")
    assert not Run(tmp_path / "one", toy_config(credit="tree", task=OneMeaning())).build("gpo")


def test_a_journal_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    run = Run(tmp_path / "run", toy_config())
    run.problems("train")
    (tmp_path / "run/journal.jsonl").symlink_to(precious)
    with pytest.raises(DataError, match="is a symbolic link"):
        run.rollout()
    assert precious.read_text() == "mine\n"


def test_pieces_of_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config())
    run.problems("train")
    for name in ("journal.jsonl", "pieces.json"):
        (tmp_path / name).write_text("{}\n")
    Run(tmp_path, toy_config(engine=Spec("engine", "gpo.toy:ChainEngine", {"padding": 5}))).problems("train")
    assert not (tmp_path / "journal.jsonl").exists()
    assert not (tmp_path / "pieces.json").exists()


def test_a_kill_before_the_problems_are_written_leaves_no_empty_run(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config())
    run.problems("train")
    (tmp_path / "problems.jsonl").unlink()
    assert len(Run(tmp_path, toy_config()).problems("train")) == 8


def test_an_evaluation_of_base_binds_the_settings_too(tmp_path: Path) -> None:
    Run(tmp_path, toy_config()).evaluate("base")
    with pytest.raises(ConfigError, match="seed was 0, now 1"):
        Run(tmp_path, toy_config(seed=1))


def test_other_arguments_of_the_chat_template_make_another_run(tmp_path: Path) -> None:
    def described(**settings: object) -> dict[str, Any]:
        return describe(RunConfig(engine=Spec("engine", "hf", settings)))

    plain, brief = described(), described(chat_template_kwargs={"enable_thinking": False})
    assert differences(plain, brief) == ['engine.chat_template_kwargs was null, now {"enable_thinking": false}']
    assert describe(resolve({}, json.loads(json.dumps(brief)))) == brief
    text = '{"enable_thinking": false}'
    assert describe(resolve({"engine.chat_template_kwargs": text})) == brief
    del plain["engine"]["chat_template_kwargs"]  # as versions without the setting have written it
    assert differences(plain, described()) == []
    for wrong in ("[1]", "false", "enable_thinking"):
        with pytest.raises(ConfigError, match=r"chat_template_kwargs is '.*', expected a JSON object or none"):
            resolve({"engine.chat_template_kwargs": wrong})


def test_settings_that_another_process_took_since_are_seen(tmp_path: Path) -> None:
    first = Run(tmp_path, toy_config())
    Run(tmp_path, toy_config(seed=1)).rollout()
    with pytest.raises(ConfigError, match="seed was 1, now 0"):
        first.rollout()


def test_a_control_whose_arm_does_not_run_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"arm 'random' repeats the search of arm 'gpo'.*--arms\.random random_unsear"
    ):
        Run(tmp_path / "run", toy_config(arms={"plain": "none", "random": "random_matched"}))
    assert not (tmp_path / "run").exists()


def test_settings_of_the_shipped_model_do_not_go_on_to_another() -> None:
    stored = describe(RunConfig())
    other = describe(resolve({"model": "another/model"}, stored))
    assert other["method"]["learning_rate"] is None
    assert other["method"]["epochs"] == describe(RunConfig(model="another/model"))["method"]["epochs"]
    assert other["piece_seconds"] == 240.0
    kept = describe(resolve({"model": "another/model"}, describe(resolve({"method.learning_rate": "5e-6"}))))
    assert kept["method"]["learning_rate"] == 5e-6


def test_a_directory_of_an_earlier_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPO_TRUST", "1")
    Run(tmp_path, toy_config()).rollout()
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("piece_seconds", "launch", "credit"):
        del config[name]
    del config["pairs"]["certainty"], config["pairs"]["strength"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Run(tmp_path).locate("gpo")


def test_how_much_an_engine_computes_at_once_may_differ_from_call_to_call(tmp_path: Path) -> None:
    """As after a batch that did not fit the memory, and in directories of versions with other defaults."""

    def with_engine(name: str, **settings: int) -> RunConfig:
        return toy_config(engine=Spec("engine", name, {"model": "reasoner", **settings}))

    known = describe(with_engine("hf", max_rows=256, max_batch_tokens=1 << 18))
    assert not [each for each in differences(known, describe(with_engine("hf"))) if not each.startswith(FREE)]
    other = differences(known, describe(with_engine("hf", max_rows=8)) | {"seed": 1})
    assert [each.split()[0] for each in other if not each.startswith(FREE)] == ["seed"]


def test_an_evaluation_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"models": {"a": "b"}}))
    with pytest.raises(ConfigError, match=r"is no run\. Choose another directory"):
        Run(tmp_path, toy_config())


def test_the_method_stays_once_a_round_is_trained(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(rounds=2))
    run._advance("gpo", 1, Stage.TRAIN)
    assert run.files.checkpoint("gpo", 1).exists()
    other = Spec("method", "toy:ToyMethod", {"strength": 1.0})
    with pytest.raises(ConfigError, match=r"method\.strength was 3\.0, now 1\.0"):
        Run(tmp_path, toy_config(rounds=2, method=other))


def test_a_round_is_not_trained_by_hand_before_it_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(tmp_path, toy_config()).rollout()
    assert main(["train-round", str(tmp_path), "gpo", "1"]) == 2
    assert "A round is trained once it is sampled" in capsys.readouterr().err
    assert not (tmp_path / "arms/gpo/model").exists()


def test_traces_are_no_samples_to_train_on(tmp_path: Path) -> None:
    Run(tmp_path / "traces", toy_config()).rollout()
    (tmp_path / "traces/traces.json").write_text("{}")
    with pytest.raises(ConfigError, match="nothing can be trained on them"):
        take_samples(tmp_path / "traces", tmp_path / "new", {})


def test_the_same_command_goes_on_with_taken_samples(tmp_path: Path) -> None:
    Run(tmp_path / "first", toy_config()).reset("gpo")
    for _ in range(2):
        config = take_samples(tmp_path / "first", tmp_path / "second", {"method.strength": "9"})
    Run(tmp_path / "second", config).train("gpo")


def test_a_folder_that_is_no_round_is_none(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(rounds=2))
    run.train("plain")
    for name in (".DS_Store", "0", "1"):
        (run.files.arm("plain") / "rounds" / name).mkdir()
    assert run.files.rounds("plain") == [1, 2]
