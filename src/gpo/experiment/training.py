"""Training of a round, in this process or in one of its own."""

from __future__ import annotations

import gc
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from gpo.config.components import made, setting_types
from gpo.contracts import Method
from gpo.engines.allocation import give_back_freed_memory
from gpo.errors import ConfigError, DataError, EngineError, naming
from gpo.experiment.metrics import round_metrics
from gpo.experiment.resources import Resources
from gpo.preferences.pairs import read_pairs
from gpo.storage.codec import to_json
from gpo.storage.files import read_json, remove, replacing, write_json
from gpo.storage.lock import locked
from gpo.storage.rounds import RoundState, sampled_by
from gpo.types import Group, RoundContext, Stage

STEP = "step {} of {}"  # which a training that was launched says on its output
METHODS_LOG = logging.getLogger("gpo.methods.training")  # by its name: no method is imported for it
GRACE = 35.0  # seconds that a launched training has to end in; torchrun gives its processes 30 of them
LAUNCHED = "GPO_LAUNCHED_BY"  # in the environment of a training that a run has launched: its directory


def trained(work: Resources, arm: str) -> int:
    """The last round whose model is there; 0 before the first."""
    if work.files.model(arm).exists():
        return work.config.rounds
    return max((n for n in work.files.rounds(arm) if work.files.checkpoint(arm, n).exists()), default=0)


def train(work: Resources, state: RoundState) -> None:
    """An update on what a round has sampled."""
    if state.number <= trained(work, state.arm):
        return

    def on_step(done: int, steps: int) -> None:
        work.teller.step(Stage.TRAIN, state.label, done, steps, "steps")

    with work.piece(Stage.TRAIN, state.label) as report:
        on_step(0, 0)  # it may be long until the first step
        work.engine.make_room()
        if work.config.launch is None:
            metrics = train_round(work, state, on_step)
        else:
            metrics = launch(work, state, work.config.launch, on_step)
        if not work.config.suits_workers:
            gc.collect()  # trainers, and their models, hold themselves in cycles
            give_back_freed_memory()
        remove(work.files.path / "journal.jsonl")  # of the model that was there before
        if state.number < work.config.rounds and state.number > work.config.buffer:
            work.files.forget(state.arm, state.number - work.config.buffer)  # nothing looks further back
        steps = round(metrics.get("steps", 1))
        report(steps, steps, "steps", 0)


def train_round(
    work: Resources, state: RoundState, on_step: Callable[[int, int], None] = lambda done, steps: None
) -> dict[str, float]:
    """Train on what a round sampled, and write the model and `training.json`; `on_step` gets steps done, and of all."""
    files, arm, number = work.files, state.arm, state.number
    last = number == work.config.rounds
    context = RoundContext(
        model=work.model_of(state.checkpoint),
        reference=work.model,
        number=number,
        last=last,
        temperature=work.config.temperature,
        pairing=work.config.pairs,
        credit=work.config.credit,
        meaning=work.meaning,
        sampled=round_metrics(work, state),
        images=files.images,
        settings={"arm": arm, **work.described},
        work_dir=files.arm(arm) / "unfinished",
        metrics_path=files.arm(arm) / "training.jsonl",
        on_step=lambda row: on_step(round(row["step"]), round(row["steps"])),
    )
    method = method_of(work, number)
    name, target = f"The method {type(method).__name__}", files.model(arm) if last else files.checkpoint(arm, number)
    with naming(name), _labelled(state.label):
        if method.trains_on == "pairs":
            metrics = method.update(read_pairs(files.pairs(arm, number)), context)
        else:
            metrics = method.update(training_groups(work, state), context)
    metrics = _checked(name, metrics)
    if _writes():
        write_json(files.arm(arm, number) / "training.json", {**metrics, **sampled_by(files, arm, number)[-1]})
    with naming(name):
        _save(method, name, target)
    if _writes():
        # A later checkpoint stands for the earlier ones, which would fill the disk.
        shutil.rmtree(files.checkpoint(arm, number - 1), ignore_errors=True)
    return metrics


def _save(method: Method, name: str, target: Path) -> None:
    """Have a method write its model, which is there in whole or not at all.

    Several processes may each write a part of it; what makes that whole is up to the method.
    """
    with replacing(target) if os.environ.get("WORLD_SIZE", "1") == "1" else nullcontext(target) as place:
        method.save(place)
        if _writes() and not place.exists():
            raise EngineError(f"{name} saved nothing at {target}. Expected a checkpoint directory there.")


@contextmanager
def _labelled(label: str) -> Iterator[None]:
    """What methods say meanwhile begins with the arm and the round."""

    def labels(record: logging.LogRecord) -> bool:
        record.msg = f"{label.replace('%', '%%')}: {record.msg}"
        return True

    METHODS_LOG.addFilter(labels)
    try:
        yield
    finally:
        METHODS_LOG.removeFilter(labels)


def training_groups(work: Resources, state: RoundState) -> list[Group]:
    """What a round trains on.

    Raises:
        DataError: a rollout is of an older policy than the round began with.
    """
    groups = state.groups(search=bool(work.config.reuse))
    expected = work.policy_version(state.checkpoint)
    for trajectory in (each for group in groups for each in group.trajectories):
        if trajectory.policy_version is not None and trajectory.policy_version < expected:
            raise DataError(
                f"The rollout {trajectory.id!r} of {state.label} was sampled by the policy after "
                f"{trajectory.policy_version} rounds of training; expected {expected}. Put back the files of this "
                f"round in {work.files.arm(state.arm, state.number)}."
            )
    return groups


def _checked(name: str, metrics: object) -> dict[str, float]:
    """Metrics as numbers, each of which may be in a tensor or an array of its own.

    Raises:
        EngineError: they are none, or a loss is not finite: the model is not worth keeping.
    """
    if not isinstance(metrics, dict):
        raise EngineError(f"{name} gave {type(metrics).__name__} as its metrics. Expected numbers by name.")
    metrics = {key: _number(name, key, value) for key, value in metrics.items()}
    wrong = [key for key, value in metrics.items() if "loss" in key and not isfinite(value)]
    if wrong:
        raise EngineError(
            f"{name} ended with {wrong[0]} {metrics[wrong[0]]}. Its model is not kept; what was sampled is. "
            "Lower the learning rate, then give the same command again."
        )
    return metrics


def _number(name: str, key: str, value: Any) -> Any:
    try:
        number = value.item() if hasattr(value, "item") else value
        to_json(number)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EngineError(
            f"{name} gave a {type(value).__name__} as its metric {key!r}. Expected a number. Its model is not kept; "
            "what was sampled is."
        ) from error
    return number


def method_of(work: Resources, number: int) -> Method:
    """The method of the run; one that was made with a model of its own takes it in the first round only."""
    method: Any = made("method", work.config.method, seed=work.config.seed)
    own = {name: None for name in ("model", "tokenizer") if name in setting_types(type(method))}
    trained: Method = replace(method, **own) if number > 1 and own else method
    return trained


def launch(work: Resources, state: RoundState, command: str, on_step: Callable[[int, int], None]) -> dict[str, float]:
    """Train in a process of its own, such as those that accelerate starts.

    Raises:
        EngineError: it failed; the message has its last words.
    """
    words = [*shlex.split(command), "gpo", "train-round", str(work.files.path), state.arm, str(state.number)]
    # What this process was allowed to import, that one is.
    environment = {**os.environ, LAUNCHED: str(work.files.path), "GPO_TRUST": "1"}
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None, "it is a pipe"
        try:
            for line in process.stdout:
                if found := re.fullmatch(STEP.format(r"(\d+)", r"(\d+)"), line.strip()):
                    on_step(int(found[1]), int(found[2]))
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        complaints.seek(0)
        said = complaints.read()
    if code:
        raise EngineError(
            f"Training of {state.label} ended with code {code}: {_why(said)} The same command goes on from the last "
            f"checkpoint. It had started: {shlex.join(words)}"
        )
    metrics: dict[str, float] = read_json(work.files.arm(state.arm, state.number) / "training.json")
    return metrics


def _end(process: subprocess.Popen[str]) -> None:
    """End a training with all of its processes: what started them hands SIGTERM on, and what is left is killed."""
    try:
        with suppress(subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(GRACE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _why(said: str) -> str:
    """The one cause among what several processes and those who started them have said."""
    # Processes that lose another one complain, and are then ended by SIGTERM: nobody learns anything of that.
    for process, number in re.findall(r"rank +: (\d+).*\n *exitcode +: -(\d+)", said):
        if int(number) != signal.SIGTERM:
            hint = ", perhaps because the memory was full" if int(number) == signal.SIGKILL else ""
            return f"process {process} was ended by {signal.Signals(int(number)).name}{hint}."
    lines = [line.strip() for line in said.split("\n") if line.strip()]
    ours = [line.partition("gpo: ")[2] for line in lines if re.match(r"(\[rank\d+\]: *)?gpo: ", line)]
    raised = [line for line in lines if re.match(r"(\[rank\d+\]: *)?[\w.]+(Error|Exception)\b", line)]
    found = [line for line in raised if "ChildFailedError" not in line and "CalledProcessError" not in line]
    return " ".join(ours[:1] or found[-1:] or lines[-3:])


def main(arguments: Sequence[str]) -> int:
    """`gpo train-round RUN ARM ROUND`, which `launch` starts: the round is sampled, and who started it holds the run.

    Raises:
        ConfigError: the run has no such arm.
    """
    if len(arguments) != 3 or not arguments[2].isdigit():
        print("Usage: gpo train-round RUN ARM ROUND\n\nTrain on what a round has sampled; --launch of gpo run does it.")
        return 0 if "--help" in arguments else 2
    work, arm, number = Resources(arguments[0]), arguments[1], int(arguments[2])
    if os.environ.get(LAUNCHED) != arguments[0]:
        raise ConfigError("A round is trained once it is sampled: gpo train RUN --launch WORDS starts this command.")
    work.check_arm(arm)
    # Of the processes that train together the first one holds the arm.
    with locked(work.files.arm(arm)) if _writes() else nullcontext():
        train_round(work, RoundState.of(work.files, arm, number), _say if _writes() else lambda done, steps: None)
    return 0


def _say(done: int, steps: int) -> None:
    try:
        print(STEP.format(done, steps), flush=True)
    except BrokenPipeError:  # who started it is gone, and what is trained is needed all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _writes() -> bool:
    """Whether this is the process that writes, of those that train together."""
    return os.environ.get("RANK", "0") == "0"
