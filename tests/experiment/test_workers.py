"""Arms side by side: the same files as one process writes, whatever is killed or fails meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from test_rounds import LETTER_OPTIONS, contents

from gpo.config.components import Spec
from gpo.config.options import resolve
from gpo.config.run import RunConfig
from gpo.errors import ConfigError, DataError, EngineError
from gpo.estimators.none import NoReset
from gpo.experiment.run import Run
from gpo.experiment.schedule import Schedule, Unit
from gpo.experiment.worker import main
from gpo.experiment.workers import count
from gpo.storage.events import Progress
from gpo.storage.lock import is_held
from gpo.toy import ChainEngine
from gpo.types import Group, RoundContext, Stage
from toy import ToyMethod, toy_config

HERE = Path(__file__).parents[1]
OPTIONS = (
    *("--task", "toy:ToyTask", "--engine", "gpo.toy:ChainEngine", "--engine.padding", "2"),
    *("--estimator", "monte_carlo", "--method", "test_workers:Slow", "--piece_seconds", "0"),
    *("--rollouts", "4", "--budget", "6", "--locate_per_problem", "2", "--workers", "2"),
    *("--locate_share", "0.4", "--reset_turns", "0"),
    *("--reset_rollouts", "4", "--test_samples", "8", "--chunk", "16"),
)


def on_worker() -> bool:
    """Whether this process is a worker beside that of the command."""
    return "worker" in sys.argv


def waited_for(there: Callable[[], object]) -> None:
    began = time.monotonic()
    while not there():
        assert time.monotonic() - began < 300
        time.sleep(0.005)


def told(context: RoundContext) -> None:
    """Says again and again that a step was done."""
    assert context.on_step is not None
    context.on_step({"step": 0, "steps": 1})


@dataclass
class Fatal(ToyMethod):
    """Ends the first worker that trains; the process of the command trains until it is told so."""

    def update(self, groups: Sequence[Group], context: RoundContext = RoundContext()) -> dict[str, float]:
        mark = Path(os.environ["MARK"])
        if on_worker() and not mark.exists():
            mark.touch()
            child = subprocess.Popen(["sleep", "60"])
            for process in (os.getpid(), child.pid):  # as Ctrl-C does: the child is not to outlive it
                os.kill(process, signal.SIGINT)
            assert child.wait() == -signal.SIGINT
            os.kill(os.getpid(), signal.SIGKILL)
        if not on_worker() and "WAIT" in os.environ:
            waited_for(lambda: told(context))
        return super().update(groups, context)


@dataclass
class Failing(ToyMethod):
    """Fails in a worker only."""

    def update(self, groups: Sequence[Group], context: RoundContext = RoundContext()) -> dict[str, float]:
        if on_worker():
            kind = os.environ["FAILS"]
            raise DataError("no rows in x.jsonl") if kind == "ours" else ZeroDivisionError("by zero")
        waited_for(lambda: told(context))
        return super().update(groups, context)


@dataclass
class Slow(ToyMethod):
    """A worker trains as long as its parent lives."""

    def update(self, groups: Sequence[Group], context: RoundContext = RoundContext()) -> dict[str, float]:
        mark = Path(os.environ.get("MARK", os.devnull))
        if on_worker() and mark.name == "mark":
            mark.write_text(str(os.getpid()))
            time.sleep(60)
            mark.with_name("slept").touch()
        waited_for(mark.exists)
        told(context)
        return super().update(groups, context)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def two_workers(method: str, **changes: Any) -> RunConfig:
    spec = Spec("method", f"test_workers:{method}")
    return toy_config(**{"method": spec, "workers": 2, "piece_seconds": 0.0, **changes})


def files_of(directory: Path) -> dict[str, bytes]:
    """All but the number of workers and the name of the method."""
    files = contents(directory)
    config = json.loads(files.pop("config.json"))
    return files | {"config": json.dumps({k: v for k, v in config.items() if k not in ("workers", "method")}).encode()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the toy run."""
    run = Run(tmp_path_factory.mktemp("workers") / "alone", toy_config(piece_seconds=0.0))
    run.all()
    return files_of(run.files.path)


def test_two_workers_leave_the_files_of_one_and_the_same_weights(tmp_path: Path, letters: Path) -> None:
    options = {**LETTER_OPTIONS, "model": str(letters), "method": "grpo", "piece_seconds": "0"}
    options |= {"arms": "plain,random,gpo", "rounds": "1", "chunk": "16", "method.epochs": "1"}
    one = Run(tmp_path / "one", resolve({**options, "workers": "1"}))
    one.all()
    seen: list[Progress] = []
    two = Run(tmp_path / "two", resolve({**options, "workers": "2"}))

    def see(progress: Progress) -> None:
        waited_for(lambda: two.memory_beside)  # so that the worker gets its part, however long it takes to start
        seen.append(progress)
        two._problems.clear()
        assert two.problems("test")  # a callback may read the run, from whatever thread it is called

    two.teller.on_progress = see
    began = time.monotonic()
    two.all()
    took = time.monotonic() - began
    expected = files_of(tmp_path / "one")
    assert "arms/gpo/model/model.safetensors" in expected
    assert files_of(tmp_path / "two") == expected
    events = [json.loads(line) for line in (tmp_path / "two/events.jsonl").read_text().splitlines()]
    assert {event.get("worker", 0) for event in events} == {0, 1}
    assert {(progress.stage, progress.arm) for progress in seen} >= {(event["stage"], event["arm"]) for event in events}
    assert sum(two.files.events.seconds().values()) < took
    assert list(two.memory_beside) == [1]
    assert not is_held(two.files.path)


def test_a_worker_that_is_killed_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("WAIT", "")
    run = Run(tmp_path / "run", two_workers("Fatal"), on_progress=lambda _: None)
    with pytest.raises(
        EngineError, match=r"A worker was ended by SIGKILL, perhaps .*, while it did train \w+\. .* --workers 1"
    ):
        run.all()
    assert not is_held(run.files.path)
    monkeypatch.delenv("WAIT")
    Run(tmp_path / "run", two_workers("Fatal")).all()
    assert files_of(tmp_path / "run") == alone


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("ours", DataError, "^no rows in x.jsonl$"),
        ("other", EngineError, "^The method Failing failed: ZeroDivisionError: by zero"),
    ],
)
def test_what_fails_in_a_worker_is_the_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("FAILS", kind)
    with pytest.raises(error, match=message):
        Run(tmp_path, two_workers("Failing")).all()
    assert not is_held(tmp_path)


def test_a_failure_of_the_command_itself_ends_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))

    def stop(progress: Progress) -> None:
        if (tmp_path / "mark").exists() and (tmp_path / "mark").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "run", two_workers("Slow"), on_progress=stop).all()
    assert is_gone(int((tmp_path / "mark").read_text()))
    assert not (tmp_path / "slept").exists()
    assert not is_held(tmp_path / "run")


def is_gone(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return False
    return True


def test_workers_die_with_the_command_and_the_same_command_goes_on(tmp_path: Path, alone: dict[str, bytes]) -> None:
    command = [sys.executable, "-m", "gpo", "run", str(tmp_path / "run"), *OPTIONS]
    paths = os.pathsep.join([str(HERE), str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "GPO_TRUST": "1"}
    mark = tmp_path / "mark"
    process = subprocess.Popen(command, env={**environment, "MARK": str(mark)}, stdout=subprocess.DEVNULL)
    waited_for(lambda: mark.exists() and mark.read_text())
    assert is_held(tmp_path / "run")
    process.kill()
    process.wait()
    waited_for(lambda: is_gone(int(mark.read_text())))
    assert not (tmp_path / "slept").exists()
    assert not is_held(tmp_path / "run")
    Run(tmp_path / "run", two_workers("Slow")).all()
    assert files_of(tmp_path / "run") == alone


def test_units_are_handed_out_in_order_once_what_they_need_is_done() -> None:
    first, second = Unit(Stage.LOCATE, "gpo"), Unit(Stage.LOCATE, "random")
    third, fourth = Unit(Stage.RESET, "gpo"), Unit(Stage.EVALUATE, "base")
    schedule = Schedule([second, first, third, fourth], {second: [first], third: [first]})
    assert [schedule.take(), schedule.take()] == [first, fourth]
    waiting: list[Unit | None] = []
    thread = Thread(target=lambda: waiting.append(schedule.take()))
    thread.start()
    schedule.done(first)
    thread.join()
    assert waiting == [second]
    assert schedule.take() == third
    assert schedule.take() is None
    for unit in (second, third, fourth):
        schedule.done(unit)
    schedule.fail(EngineError("late"))
    schedule.wait()


def test_a_failure_ends_the_waiting_of_others_and_the_first_one_counts() -> None:
    unit, other = Unit(Stage.TRAIN, "gpo"), Unit(Stage.EVALUATE, "gpo")
    schedule = Schedule([unit, other], {other: [unit]})
    assert schedule.take() == unit
    waiting: list[Unit | None] = []
    thread = Thread(target=lambda: waiting.append(schedule.take()))
    thread.start()
    schedule.fail(EngineError("first"))
    schedule.fail(EngineError("second"))
    thread.join()
    assert waiting == [None]
    for call in (schedule.check, schedule.wait):
        with pytest.raises(EngineError, match="first"):
            call()


def test_what_needs_itself_is_tried_and_not_waited_for() -> None:
    a, b = Unit(Stage.LOCATE, "a"), Unit(Stage.LOCATE, "b")
    assert Schedule([a, b], {a: [b], b: [a]}).take() == a


def test_there_are_as_many_workers_as_threads_for_a_shipped_model_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpo.engines.threads.threads", lambda: 2)
    config = RunConfig()
    assert count(Run(tmp_path, config), 3) == 2
    assert count(Run(tmp_path, replace(config, workers=8)), 3) == 3
    assert count(Run(tmp_path, config), 0) == 1
    for other in (
        replace(config, workers=1),
        replace(config, launch=sys.executable),
        replace(config, piece_seconds=5.0),
        replace(config, arms={"plain": NoReset(), "other": "none"}),
        toy_config(),
    ):
        assert count(Run(tmp_path, other), 3) == 1
    with pytest.raises(ConfigError, match="toy processes is for one process only"):
        count(Run(tmp_path, toy_config(engine=ChainEngine(), workers=2)), 3)

    class Mine(NoReset):
        pass

    with pytest.raises(
        ConfigError, match=r"No other process can import .*<locals>\.Mine without running this program again\. Move"
    ):
        count(Run(tmp_path, replace(config, workers=2, arms={"mine": Mine(), "plain": "none"})), 2)
    assert count(Run(tmp_path, replace(config, workers=1, arms={"mine": Mine(), "plain": "none"})), 2) == 1


def test_several_workers_keep_no_journal() -> None:
    assert toy_config(workers=2).piece_seconds == 0
    with pytest.raises(ConfigError, match=r"2 workers write whole chunks\. Add --piece_seconds 0, or take --workers 1"):
        toy_config(workers=2, piece_seconds=5.0)
    with pytest.raises(ConfigError, match="workers is 0, expected at least 1"):
        toy_config(workers=0)


def test_the_command_of_a_worker_says_that_a_run_starts_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--workers of gpo run starts it" in capsys.readouterr().out
    assert main(["run", "x", "1"]) == 2
