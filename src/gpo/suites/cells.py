"""The runs of a suite, and what is kept of each. A cell belongs to the process that holds its directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gpo.config.options import resolve
from gpo.errors import GPOError, Refusal
from gpo.experiment.reuse import arms_alike, copy_samples, first_alike
from gpo.experiment.run import Run
from gpo.storage.chunks import Chunks
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.lock import Held, is_held, locked
from gpo.suites.outcome import Outcome, outcome_of
from gpo.suites.suite import Cell, Options, Suite

WAIT, SOON = 2.0, 0.05  # seconds until it is looked again whether others are done: with a cell, with writing


class SuiteRuns:
    """The run directories of a suite below one folder, and `results.jsonl` with the outcome of each finished one.

    Args:
        on_cell: called with a cell before it is run, and how many come after it.
        on_outcome: called with a cell that this process has finished.
        on_wait: called once for each wait, with the cells that other processes run.
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
        on_outcome: Callable[[Cell], None] = lambda cell: None,
        on_wait: Callable[[Sequence[Cell]], None] = lambda cells: None,
        on_progress: Callable[[Any], None] | None = None,
    ) -> None:
        self.suite, self.folder = suite, folder
        self.file = Chunks(folder / "results.jsonl", Outcome)
        self._known = list(known)
        self._on_cell, self._on_outcome, self._on_wait, self._on_progress = on_cell, on_outcome, on_wait, on_progress

    def outcomes(self) -> list[Outcome]:
        """Of this suite, with the options that it gives its cells now; an outcome of other options does not count.

        In the suite's order, whoever finished when.
        """
        rows = {}
        for row in [*self._known, *self.file.read()]:
            ours = row.suite == self.suite.name and row.cell.regime in self.suite.regimes
            if ours and row.cell.method in self.suite.methods and row.options == self.suite.options(row.cell):
                rows[row.cell] = row
        regimes, methods = list(self.suite.regimes), list(self.suite.methods)
        return sorted(
            rows.values(),
            key=lambda row: (row.cell.seed, regimes.index(row.cell.regime), methods.index(row.cell.method)),
        )

    def run(self, cells: Sequence[Cell]) -> None:
        """Every cell that is not finished, in order; those that other processes run are waited for at the end.

        A failed cell stops this process; the same command goes on there.

        Raises:
            GPOError: a cell failed; the message names it. Or another process works in the folder.
        """
        waiting = False
        while left := self.left(cells):
            held = [cell for cell in left if is_held(self.folder / cell.name)]
            cell = next((cell for cell in left if self._is_free(cell, held)), None)
            if cell is None:
                if not waiting:
                    self._on_wait(left)
                waiting = True
                time.sleep(WAIT)
                continue
            waiting = False
            try:
                self._run(cell, len(left) - 1)
            except Held:
                continue  # somebody was faster
            except GPOError as error:
                message = f"In {cell.name} of the suite {self.suite.name}: {error}"
                raise Refusal.of(error)._replace(message=message).error() from error

    def left(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those without an outcome."""
        finished = {row.cell for row in self.outcomes()}
        return [cell for cell in cells if cell not in finished]

    def _is_free(self, cell: Cell, held: Sequence[Cell]) -> bool:
        """Whether no process that holds a cell samples for an arm what this one could take and no finished run has."""
        if cell in held:
            return False
        _, found = self._source(cell)
        return all(self._alike(cell, self.suite.options(each), self._arms(each)) <= found for each in held)

    def _run(self, cell: Cell, left: int) -> None:
        options = self.suite.options(cell)
        config = resolve(options)
        directory = self.folder / cell.name
        source, _ = self._source(cell)
        if source is not None:
            copy_samples(source, directory, config)
        run = Run(directory, config, on_progress=self._on_progress)
        arms = cell.arms or tuple(config.arms)
        with run.held():
            if not self.left([cell]):
                return  # somebody was even faster
            self._on_cell(cell, left)
            for arm in arms:
                run.train(arm)
            for name in (BASE, *arms):
                run.evaluate(name)
            run.report()
            outcome = outcome_of(self.suite.name, cell, options, run.files, arms, source)
            with self.alone():
                self.file.append([outcome])
        self._on_outcome(cell)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process writes into the folder of the suite."""
        with ExitStack() as stack:
            while True:
                try:
                    check = stack.enter_context(locked(self.folder))
                    break
                except Held:
                    time.sleep(SOON)
            yield
            check()

    def _source(self, cell: Cell) -> tuple[Path | None, set[str]]:
        """The finished run of the suite that sampled most of what this one would, and the arms that it did that for."""
        ours = resolve(self.suite.options(cell))
        found = [
            (directory, self._alike(cell, row.options, set(row.arms)))
            for row in self.outcomes()
            if row.cell != cell
            and RunDirectory(directory := self.folder / row.cell.name).rollouts.path.exists()
            and row.options["seed"] == str(cell.seed)
            and first_alike(ours, resolve(row.options))
        ]
        return max(found, key=lambda each: len(each[1]), default=(None, set()))

    def _alike(self, cell: Cell, options: Options, arms: set[str]) -> set[str]:
        """Of the arms of another cell those that search and reset as this one would."""
        if options["seed"] != str(cell.seed):
            return set()
        return arms & self._arms(cell) & arms_alike(resolve(self.suite.options(cell)), resolve(options))

    def _arms(self, cell: Cell) -> set[str]:
        return set(cell.arms or resolve(self.suite.options(cell)).arms)
