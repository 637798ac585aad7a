"""The runs of a suite, one after another, and what is kept of each."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from gpo import __version__
from gpo.config.options import resolve
from gpo.config.run import RunConfig, describe, differences
from gpo.errors import GPOError
from gpo.experiment.reuse import TRAINED, copy_samples
from gpo.experiment.run import Run
from gpo.report.results import right_samples, summarize
from gpo.storage.chunks import Chunks
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.files import read_json
from gpo.suites.suite import Cell, Options, Suite
from gpo.types import Group, Stage


@dataclass(frozen=True)
class ArmOutcome:
    """What an arm got and took. Shares are of the samples of a question; one without a graded sample is None."""

    name: str
    right: tuple[float | None, ...]  # (Q,)
    sampled_tokens: int
    trained_tokens: int | None  # None where the method does not tell
    seconds: dict[str, float]  # by stage; what another run sampled for it is counted


@dataclass(frozen=True)
class Outcome:
    """A finished cell. The arms are those that it trained."""

    suite: str
    cell: Cell
    options: Options
    questions: tuple[str, ...]  # (Q,) ids of what was asked
    samples: int  # of each question
    base: tuple[float | None, ...]  # (Q,) of the model before training
    trained: tuple[ArmOutcome, ...]
    parameters: int | None  # of the model; None where its files do not tell
    version: str

    @property
    def arms(self) -> dict[str, ArmOutcome]:
        """The arms that it trained, by name."""
        return {arm.name: arm for arm in self.trained}


def flops(outcome: Outcome, arm: ArmOutcome) -> float | None:
    """2 N for each sampled token and 6 N for each trained one."""
    if outcome.parameters is None or arm.trained_tokens is None:
        return None
    return outcome.parameters * (2.0 * arm.sampled_tokens + 6.0 * arm.trained_tokens)


class SuiteRuns:
    """The run directories of a suite below one folder, and `results.jsonl` with the outcome of each finished one.

    Args:
        on_cell: called with a cell before it is run, and how many come after it.
        on_progress: as of a run.
        known: outcomes from elsewhere; their cells are not run again.
    """

    def __init__(
        self,
        suite: Suite,
        folder: Path,
        *,
        known: Sequence[Outcome] = (),
        on_cell: Callable[[Cell, int], None] = lambda cell, left: None,
        on_progress: Callable[[Any], None] | None = None,
    ) -> None:
        self.suite, self.folder = suite, folder
        self.file = Chunks(folder / "results.jsonl", Outcome)
        self._known = list(known)
        self._on_cell, self._on_progress = on_cell, on_progress

    def outcomes(self) -> list[Outcome]:
        """Of this suite, with the options that it gives its cells now; an outcome of other options does not count."""
        rows = {}
        for row in [*self._known, *self.file.read()]:
            ours = row.suite == self.suite.name and row.cell.regime in self.suite.regimes
            if ours and row.cell.method in self.suite.methods and row.options == self.suite.options(row.cell):
                rows[row.cell] = row
        return list(rows.values())

    def run(self, cells: Sequence[Cell]) -> None:
        """Every cell that is not finished, in order. A failed one stops the suite; the same command goes on there.

        Raises:
            GPOError: a cell failed; the message names it.
        """
        finished = {row.cell for row in self.outcomes()}
        left = [cell for cell in cells if cell not in finished]
        for number, cell in enumerate(left):
            self._on_cell(cell, len(left) - number - 1)
            try:
                self.file.append([self._run(cell)])
            except GPOError as error:
                raise type(error)(f"In {cell.name} of the suite {self.suite.name}: {error}") from error

    def _run(self, cell: Cell) -> Outcome:
        options = self.suite.options(cell)
        config = resolve(options)
        directory = self.folder / cell.name
        source = self._alike(cell, config) if config.rounds == 1 else None
        if source is not None:
            copy_samples(source, directory, config)
        run = Run(directory, config, on_progress=self._on_progress)
        arms = cell.arms or tuple(config.arms)
        with run.held():
            for arm in arms:
                run.train(arm)
            for name in (BASE, *arms):
                run.evaluate(name)
            run.report()
        return outcome_of(self.suite.name, cell, options, run.files, arms, source)

    def _alike(self, cell: Cell, config: RunConfig) -> Path | None:
        """A finished run of the suite that sampled what this one would sample."""
        wanted = describe(config)
        for row in self.file.read():
            directory = self.folder / row.cell.name
            if row.cell != cell and row.cell.seed == cell.seed and (directory / "config.json").exists():
                found = resolve(row.options)
                changed = differences(describe(found), wanted)
                if found.rounds == 1 and all(each.startswith(TRAINED) for each in changed):
                    return directory
        return None


def outcome_of(
    suite: str, cell: Cell, options: Options, files: RunDirectory, arms: Sequence[str], source: Path | None = None
) -> Outcome:
    """What a finished run has found; `source` is the run whose samples it took."""
    results = summarize(files)
    tokens = {arm.name: sum(arm.tokens.values()) for arm in results.arms}
    problems = files.problems("test") or []
    return Outcome(
        suite=suite,
        cell=cell,
        options=options,
        questions=tuple(problem.id for problem in problems),
        samples=results.samples,
        base=_shares(files.evaluation(BASE).read()),
        trained=tuple(
            ArmOutcome(
                name=arm,
                right=_shares(files.evaluation(arm).read()),
                sampled_tokens=tokens[arm],
                trained_tokens=_trained(files, arm),
                seconds=_seconds(files, arm, source),
            )
            for arm in arms
        ),
        parameters=parameters(Path(str(files.config()["model"]))),
        version=__version__,
    )


def _seconds(files: RunDirectory, arm: str, source: Path | None) -> dict[str, float]:
    sampling = {Stage.ROLLOUT, Stage.LOCATE, Stage.RESET, Stage.MORE}
    before = {} if source is None else RunDirectory(source).seconds_of(arm)
    spent = {stage: seconds for stage, seconds in before.items() if stage in sampling} | files.seconds_of(arm)
    return {stage: round(seconds, 1) for stage, seconds in spent.items()}


def _shares(groups: Sequence[Group]) -> tuple[float | None, ...]:
    graded = [[right for right in samples if right is not None] for samples in right_samples(groups)]
    return tuple(round(fmean(right), 4) if right else None for right in graded)


def _trained(files: RunDirectory, arm: str) -> int | None:
    """Tokens that went through the model in training, of all rounds."""
    paths = [files.arm(arm, number) / "training.json" for number in files.rounds(arm)]
    metrics = [read_json(path) for path in paths if path.exists()]
    told = [row["trained_tokens"] for row in metrics if "trained_tokens" in row]
    return round(sum(told)) if metrics and len(told) == len(metrics) else None


def parameters(model: Path) -> int | None:
    """How many numbers the safetensors files of a directory hold; None without any."""
    total = 0
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        total += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total or None
