import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpo
from gpo import cli
from gpo.cli import main, take_flag
from gpo.config.options import flag, split
from gpo.errors import ConfigError, DataError, DiskFull, EngineError, GPOError, Refusal, ServerAway
from gpo.experiment.run import Run
from gpo.storage.lock import Held
from toy import ToyMethod

TOY = (
    *("--task", "toy:ToyTask", "--task.size", "2", "--engine", "chain", "--method", "toy:ToyMethod"),
    *("--rollouts", "4", "--budget", "20", "--test_samples", "4"),
    *("--locate_share", "0.4", "--reset_turns", "0"),
)


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and the one line that a failing command writes."""
    code = main(arguments)
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("gpo: ")
    return code, err


def test_options_are_told_from_names() -> None:
    assert split(["run", "--problems", "8", "runs/a", "--method.lora=4", "--reuse", "--lr", "-1"]) == (
        ["run", "runs/a"],
        {"problems": "8", "method.lora": "4", "reuse": "true", "lr": "-1"},
    )
    with pytest.raises(ConfigError, match="--seed is given twice"):
        split(["--seed", "1", "--seed=2"])
    for words in (["--question"], ["--question", "--model", "x"]):
        with pytest.raises(ConfigError, match="--question needs a value"):
            split(words)
    with pytest.raises(ConfigError, match="'-' is no option"):
        split(["run", "-"])
    assert split(["train", "--method.bf16"])[1] == {"method.bf16": "true"}
    assert split(["--test-problems", "8", "--dry-run", "--arms.my-arm.max-steps", "3"])[1] == {
        "test_problems": "8",
        "dry-run": "true",
        "arms.my-arm.max_steps": "3",
    }


def test_every_stage_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["rollout", run, *TOY]) == 0
    assert (tmp_path / "run/rollouts.jsonl").exists()
    assert not (tmp_path / "run/arms").exists()
    assert main(["locate", run, "--arm", "gpo"]) == 0
    assert [path.name for path in (tmp_path / "run/arms").iterdir()] == ["gpo"]
    for command, file in (("reset", "resets.jsonl"), ("build", "pairs.jsonl"), ("train", "model/chain.json")):
        assert not (tmp_path / "run/arms/gpo" / file).exists()
        assert main([command, run, "--arm=gpo"]) == 0
        assert (tmp_path / "run/arms/gpo" / file).exists()
    assert main(["evaluate", run, "--arm", "base"]) == 0
    assert [path.name for path in (tmp_path / "run/evaluation").iterdir()] == ["base.jsonl"]
    assert main(["run", run]) == 0
    assert main(["results", run]) == 0
    out = capsys.readouterr().out
    assert "all questions" in out
    assert f"Everything is in {run}\n  tables:   table.md" in out


def test_results_fit_in_80_columns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpo", "run", "r", *TOY]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "COLUMNS": "80", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    table = done.stdout[done.stdout.index("accuracy in %") : done.stdout.index("Everything is in r")]
    assert max(map(len, table.splitlines())) <= 80
    for piece in ("evaluate gpo: 2/2 problems", "+0.0", "minus plain", "of budget"):
        assert piece in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "Unknown command 'rum'. Did you mean 'run'?"),
        (["run", "a", "b"], "One directory is expected, got 2: a b."),
        (["run", "r", "--probl", "8"], "Unknown option '--probl'. Did you mean '--problems'?"),
        (["run", "r", "--problems", "few"], "--problems is 'few', expected a whole number."),
        (["run", "r", "--estimator.rollout", "8"], "Did you mean 'rollouts'?"),
        (["run", "r", "--estimator", "monte"], "Unknown estimator 'monte'"),
        (["run", "r", "--engine.tokenizer"], "--engine.tokenizer needs a value: --engine.tokenizer VALUE."),
        (["run", "r", "--arms.gpo"], "--arms.gpo needs a value: --arms.gpo NAME."),
        (["run", "r", "--estimator.preset"], "--arms.gpo.preset needs a value"),
        (
            ["run", "r", "--estimator", "random", "--arms.gpo", "bisect"],
            "--estimator and --arms.gpo are the same option",
        ),
        (["run", "r", "--arms", "plain,,gpo"], "--arms has an empty name. Give names such as plain,random,gpo"),
        (["run", "r", "--arms", ""], "--arms is empty."),
        (["run", "r", "--arms", "plain, plain"], "--arms names an arm twice."),
        (["run", "r", "--arm", "gpo"], "gpo run is for all arms. --arm goes with locate, reset,"),
        (["run", "r", "--data", "nowhere"], "--data nowhere: there is no such folder."),
        (["results", "r", "--problems", "8"], "gpo results says what is in r and has no options, got --"),
        (["results", "nowhere"], "nowhere is no run directory. Start one with: gpo run nowhere"),
        (["run", "r", "--dry-run=perhaps"], "--dry-run is 'perhaps', expected true or false."),
        (["run", "r", "--trust=perhaps"], "--trust is 'perhaps', expected true or false."),
        (["run", "r", "--seed", "-1"], "seed is -1, expected a whole number from 0 to"),
        (["traces", "r", "--file", "f", "--limit", "-1"], "--limit is -1, expected at least 1."),
        (["traces", "r"], "gpo traces needs --file FILE"),
        (["evaluate", "nowhere", "--models", "a="], "--models has 'a=', expected NAME=PATH."),
        (["evaluate", "nowhere", "--models", "a", "--test-problems", "8"], "It is called --limit where models"),
        (["compare", "mine.toml"], "There is no suite file mine.toml. These ship with GPO: ablations,"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = fails([*arguments, *(TOY if "r" in arguments else ())], capsys)
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_run_does_not_begin_where_something_else_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("empty", "code/package", "logs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "logs/log.txt").write_text("begun")
    assert "There is no run" in fails(["evaluate", str(tmp_path / "empty")], capsys)[1]
    assert (
        "is no run and has folders of something else: package"
        in fails(["run", str(tmp_path / "code"), *TOY], capsys)[1]
    )
    assert [path.name for path in (tmp_path / "code").iterdir()] == ["package"]
    assert main(["rollout", str(tmp_path / "logs"), *TOY]) == 0
    capsys.readouterr()
    for command in ("run", "results"):
        assert "Runs are in it: logs" in fails([command, str(tmp_path)], capsys)[1]
    assert "is a run or an evaluation" in fails(["compare", "quick", str(tmp_path / "logs")], capsys)[1]


def test_a_malformed_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    main(["rollout", str(run), *TOY])
    lines = (run / "rollouts.jsonl").read_text().splitlines()
    (run / "rollouts.jsonl").write_text("\n".join([lines[0], '{"chunk": 0}', *lines[2:]]) + "\n")
    capsys.readouterr()
    code, err = fails(["results", str(run)], capsys)
    assert code == 2
    assert f"{run}/rollouts.jsonl:2: not a row of Group" in err


def test_other_settings_for_a_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    main(["rollout", run, *TOY])
    capsys.readouterr()
    code, err = fails(["run", run, "--rollouts", "5"], capsys)
    assert code == 2
    assert "made with other settings: rollouts was 4, now 5" in err


def test_a_program_error_is_one_line_too_and_shown_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("no trajectories")

    monkeypatch.setattr(ToyMethod, "update", broken)
    run = str(tmp_path / "run")
    code, err = fails(["train", run, *TOY, "--arm", "gpo"], capsys)
    assert code == 1
    assert err == (
        "gpo: The method ToyMethod failed: ZeroDivisionError: no trajectories. What was finished is kept. "
        "GPO_DEBUG=1 shows where.\n"
    )
    monkeypatch.setenv("GPO_DEBUG", "1")
    with pytest.raises(EngineError) as told:
        main(["train", run, "--arm", "gpo"])
    assert isinstance(told.value.__cause__, ZeroDivisionError)


def test_an_interrupted_command_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "all", interrupted)
    run = str(tmp_path / "my run")
    assert main(["run", run, *TOY]) == 130
    assert f"gpo run '{run}' --task toy:ToyTask" in capsys.readouterr().err


def test_help_lists_commands_options_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in cli.COMMANDS)
    assert main(["run", "--help", "--estimator", "monte_carlo"]) == 0
    out = capsys.readouterr().out
    assert "  --budget               tokens of each arm in a round, as a multiple of those" in out
    assert "--estimator.rollouts   N; the paper improves up to 12 (4)" in out
    assert max(map(len, out.split("\n"))) <= 80
    assert main(["run", "--help", "--engine", "ray", "--engine.inner", "chain"]) == 0
    out = capsys.readouterr().out
    assert "  --engine.actors        (2)" in out
    assert "--engine.inner.padding" in out
    assert max(map(len, out.split("\n"))) <= 80
    assert main(["build", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--pairs.per_start" in out
    assert "--locate_share" not in out
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(gpo.__version__ + "\n")


def test_pretraining_has_options_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--help"])
    assert stop.value.code == 0
    assert "usage: gpo pretrain" in capsys.readouterr().out


def test_data_is_where_the_tasks_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPO_DATA", "elsewhere")
    assert main(["rollout", str(tmp_path / "run"), *TOY, "--data", str(tmp_path)]) == 0
    assert cli.os.environ["GPO_DATA"] == str(tmp_path)


def test_flags_stand_anywhere_and_every_command_knows_them() -> None:
    arguments = ["report", "--trust", "true", "runs/a", "--verbose", "--trust=false"]
    assert not cli.take_flag(arguments, "trust")
    assert cli.take_flag(arguments, "verbose")
    assert not cli.take_flag(arguments, "verbose")
    assert arguments == ["report", "runs/a"]


def test_what_the_package_says_is_a_line_each_and_libraries_are_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> str:
        main([*arguments, "--version"])
        logging.getLogger("gpo.tasks").info("two\nlines")
        logging.getLogger("library").error("of somebody else")
        try:
            raise ValueError("x")
        except ValueError:
            logging.getLogger("gpo").exception("It broke")
        return capsys.readouterr().err

    broke = "gpo: It broke: ValueError: x\n"
    assert said().replace("of somebody else\n", "") == broke
    assert said("--verbose").replace("of somebody else\n", "") == "gpo: two lines\n" + broke
    monkeypatch.setenv("GPO_LOG", "info")
    assert said().startswith("gpo: two lines\n")
    monkeypatch.setenv("GPO_LOG", "loud")
    code, err = fails(["--version"], capsys)
    assert (code, "Unknown level in GPO_LOG 'loud'" in err) == (2, True)


def test_a_program_has_the_log_of_the_package_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    logging.getLogger("gpo").setLevel("ERROR")
    assert main(["report", str(tmp_path), "--verbose"]) == 2
    assert logging.getLogger("gpo").level == logging.INFO


def test_a_flag_takes_no_name_behind_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--dry-run", "quick", str(tmp_path / "out")]) == 0
    assert "seeds" in capsys.readouterr().out
    assert split(["--dry-run", "a", "--reuse", "false", "--quick=False"]) == (
        ["a"],
        {"dry-run": "true", "reuse": "false", "quick": "False"},
    )
    given = split(["--quick=False", "--finished"])[1]
    assert [flag(given, name) for name in ("quick", "finished", "watch")] == [False, True, False]
    assert not take_flag(["run", "--trust=False"], "trust")


def test_nothing_is_written_over_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["rollout", str(tmp_path / "run"), *TOY])
    (tmp_path / "data").mkdir()
    for command in (
        ["report", str(tmp_path / "run"), "--out", str(tmp_path / "data")],
        ["agreement", str(tmp_path / "run"), "--export", str(tmp_path / "data")],
        ["compare", "quick", str(tmp_path / "out"), "--page", str(tmp_path / "data")],
    ):
        assert "data is a folder. Name a file." in fails(command, capsys)[1]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    main(["rollout", str(tmp_path / "run"), *TOY])
    command = f"{sys.executable} -m gpo results {tmp_path / 'run'} | head -1; echo ${{PIPESTATUS[0]}}"
    environment = {"PYTHONPATH": str(Path(__file__).parent), "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "141"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Held("Another process works there."), 75),
        (DiskFull("No room."), 75),
        (ServerAway("Nobody answers."), 75),
        (Refusal.of(DiskFull("No room in a worker.")).error(), 75),
        (DataError("A damaged file."), 2),
        (EngineError("It fails."), 1),
    ],
)
def test_what_may_succeed_at_another_time_has_a_code_of_its_own(
    error: GPOError, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "command", fail)
    assert fails(["run", "r"], capsys) == (code, f"gpo: {error}\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_scheduler_stops_a_command_as_ctrl_c_does(
    number: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared = []

    def stopped(*_: Any) -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # said twice, as of a terminal that closes
            cleared.append(number)

    monkeypatch.setattr(Run, "all", stopped)
    before = signal.signal(number, signal.SIG_DFL)  # tests may run under nohup
    try:
        assert main(["run", str(tmp_path / "run"), *TOY]) == code
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert cleared == [number]
    assert "Stopped. What is finished is kept; the same command goes on" in capsys.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(_: Any) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    monkeypatch.setattr(cli, "command", command)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["run"]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_name_that_no_folder_can_have_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = fails(["run", str(tmp_path / ("a" * 256)), *TOY], capsys)
    assert code == 2
    assert "cannot be written: File name too long. Choose a shorter name." in err


def test_results_of_a_run_that_cannot_be_written_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main(["rollout", str(run), *TOY]) == 0
    (run / ".lock").unlink()
    capsys.readouterr()
    before = sorted(run.rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == run and mode == os.W_OK))
    assert main(["results", str(run)]) == 0
    assert f"Everything is in {run}" in capsys.readouterr().out
    assert sorted(run.rglob("*")) == before


def test_a_run_may_be_in_a_folder_whose_name_is_no_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    for _ in range(2):
        assert main(["rollout", place, *TOY]) == 0, capfd.readouterr().err
