"""What `--help` says."""

import subprocess
import sys
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Literal

import pytest

from gpo.cli import COMMANDS, main
from gpo.config.help import OF_STAGE, comments, entry, settings
from gpo.config.registry import REGISTRIES
from gpo.config.run import RunConfig

HELP = [[], ["run"], *([command] for command in COMMANDS), ["train-round"]]
HELP += [["run", f"--{kind}", name] for kind in ("task", "method", "segmenter") for name in REGISTRIES[kind]]
HELP += [["locate", "--estimator", name] for name in REGISTRIES["estimator"]]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_is_readable_at_80_columns(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert [line for line in lines if len(line) > 80] == []
    assert len(lines) > 2


@dataclass
class Parent:
    first: int = 1  # of all
    second: Literal["a", "b"] | None = None  # with a "#" in it


@dataclass
class Child(Parent):
    """Shows what a line per field cannot."""

    first: int = 2
    third: tuple[str, ...] = (
        "x",
        "y",
    )  # over several lines
    fourth: list[int] = field(default_factory=list)
    fifth: str = "# no comment"
    sixth: Any = field(kw_only=True)  # has no default


def test_a_setting_has_its_comment_its_choices_and_its_default() -> None:
    assert settings(Child, "--x.") == [
        "  --x.first              of all (2)",
        '  --x.second             with a "#" in it; a, b (none)',
        "  --x.third              over several lines (x,y)",
        "  --x.fourth             ([])",
        "  --x.fifth              (# no comment)",
        "  --x.sixth              has no default (must be given)",
    ]
    assert settings(Child, "--", only="first") == ["  --first                of all (2)"]
    assert settings(Child, "--", skip=("second", "third", "fourth", "fifth", "sixth")) == settings(
        Child, "--", only="first"
    )


def test_a_long_default_is_cut() -> None:
    names = ("tracking_shuffled_objects_three", "tracking_shuffled_objects_five", "tracking_shuffled_objects_seven")
    made = make_dataclass("Made", [("names", tuple[str, ...], field(default=names))])
    assert settings(made, "--") == ["  --names                (tracking_shuffled_objects_three and 2 more)"]


def test_a_class_without_a_source_has_no_comments() -> None:
    scope: dict[str, Any] = {"__name__": "nowhere"}
    exec("class Typed:\n    x: int = 1  # not seen\n", scope)
    assert comments(scope["Typed"]) == {}


def test_a_long_name_has_a_line_of_its_own() -> None:
    assert entry("--method.gradient_checkpointing", "saves memory") == [
        "  --method.gradient_checkpointing",
        " " * 25 + "saves memory",
    ]


def test_every_setting_of_a_run_is_the_option_of_a_stage() -> None:
    listed = {name for names in OF_STAGE.values() for name in names}
    assert {item.name for item in fields(RunConfig)} <= listed
    assert listed - {item.name for item in fields(RunConfig)} == {"estimator"}


def test_a_stage_shows_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*command: str) -> str:
        main([*command, "--help"])
        return capsys.readouterr().out

    evaluate = said("evaluate")
    assert "--test_samples         of each test problem (4)" in evaluate
    assert "--temperature          0: greedy (1.0)" in evaluate  # of gpo evaluate --models
    assert "--chat                 through the chat template; auto: where there is one;" in evaluate
    assert "--locate_share" not in evaluate
    assert "--question TEXT" in said("locate")
    assert "--estimator.preset     all of them at once: paper, authors" in said("run", "--estimator", "monte_carlo")
    tuned = "With a model that ships with GPO, unless told otherwise: learning_rate 0.0003,"
    assert tuned in said("train", "--method", "dpo")


@pytest.mark.parametrize("command", ["", "run", "evaluate", "locate", "train", "train-round"])
def test_help_loads_no_torch(command: str) -> None:
    words = [*command.split(), "--help"]
    script = f"import sys\nfrom gpo.cli import main\nmain({words})\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
