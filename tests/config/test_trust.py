"""What a stranger's configuration names is not run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.cli import main
from gpo.config.run import describe
from gpo.config.trust import refuse_strangers, remember
from gpo.errors import ConfigError
from gpo.evaluation.evaluation import Evaluation, EvaluationConfig, describe_evaluation
from toy import toy_config

HOSTILE = "from pathlib import Path\nPath('ran').touch()\nfrom toy import ToyTask as Task\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that leaves a mark when it is imported, and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GPO_TRUST", "")  # so that what --trust sets is undone
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "hostile.py").write_text(HOSTILE)
    yield tmp_path
    sys.modules.pop("hostile", None)


def stored_run(**changes: Any) -> dict[str, Any]:
    config = toy_config(task="chain", engine="chain", method="dpo", arms={"gpo": "monte_carlo"})
    return {"gpo": "0.1.0", **describe(config), **changes}


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


COMMANDS = (
    ["run", "r"],
    ["rollout", "r"],
    ["locate", "r", "--question", "1?", "--answer", "1"],
    ["locate", "r", "--watch", "--question", "1?"],
    ["run", "mine", "--samples", "r"],
    ["train-round", "r", "gpo", "1"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_imports_what_a_strangers_run_names(
    command: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here / "r", stored_run(task={"name": "hostile:Task"}))
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "r/config.json names what is no part of GPO: hostile:Task" in err
    assert "--trust" in err
    assert not (here / "ran").exists()


def test_a_stored_evaluation_is_as_foreign_as_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = describe_evaluation(EvaluationConfig(task="chain", engine="chain"))
    write(here / "e", {"gpo": "0.1.0", **config, "task": {"name": "hostile:Task"}})
    assert main(["evaluate", "e"]) == 2
    assert "hostile:Task" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="hostile:Task"):
        Evaluation(here / "e")
    assert not (here / "ran").exists()


def test_a_component_of_a_component_is_code_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "r", stored_run(engine={"name": "ray", "inner": {"name": "hostile:Task"}}))
    assert main(["rollout", "r"]) == 2
    assert "r/config.json names what is no part of GPO: hostile:Task" in capsys.readouterr().err
    assert not (here / "ran").exists()


def test_the_words_that_start_training_are_code_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "r", stored_run(launch="touch ran"))
    assert main(["rollout", "r"]) == 2
    assert "r/config.json names what is no part of GPO: touch ran" in capsys.readouterr().err


def test_who_names_it_or_trusts_it_may_go_on(here: Path) -> None:
    folder = write(here / "r", stored_run(task={"name": "hostile:Task"}))
    assert main(["rollout", "r", "--task", "hostile:Task"]) == 0
    assert (here / "ran").exists()
    (here / "ran").unlink()
    del sys.modules["hostile"]
    assert main(["rollout", "r"]) == 0, "this user has started it"
    assert (here / "ran").exists()
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")  # somebody has been here
    assert main(["rollout", "r"]) == 2
    assert main(["rollout", "r", "--trust"]) == 0


def test_trust_may_be_spelled_out(here: Path) -> None:
    write(here / "r", stored_run(task={"name": "hostile:Task"}))
    assert main(["rollout", "r", "--trust", "false"]) == 2
    assert main(["rollout", "r", "--trust", "true"]) == 0


def test_a_run_that_was_moved_is_asked_about_again(here: Path) -> None:
    folder, stored = here / "r", stored_run(task={"name": "hostile:Task"})
    write(folder, stored)
    remember(folder)
    refuse_strangers(folder, stored)
    moved = folder.rename(here / "s")
    with pytest.raises(ConfigError, match="hostile:Task"):
        refuse_strangers(moved, stored)


def test_a_home_that_cannot_be_written_is_no_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "hostile.py"))
    remember(write(here / "r", stored_run()))
