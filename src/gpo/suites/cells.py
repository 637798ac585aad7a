"""The runs of a suite, and what is kept of each. A cell belongs to the process that holds its directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from gpo import __version__
from gpo.advice.cost import shape_of
from gpo.config.components import made
from gpo.config.models import resolve_model
from gpo.config.options import resolve
from gpo.errors import GPOError, Refusal
from gpo.estimators.matched import MatchedRandom
from gpo.experiment.reuse import arms_alike, copy_samples, first_alike
from gpo.experiment.run import Run
from gpo.report.results import summarize
from gpo.report.strata import horizons, shares
from gpo.storage.chunks import Chunks
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.files import read_json
from gpo.storage.lock import Held, is_held, locked
from gpo.storage.rounds import RoundState
from gpo.suites.suite import Cell, Options, Suite
from gpo.types import Stage

WAIT, SOON = 2.0, 0.05  # seconds until it is looked again whether others are done: with a cell, with writing


@dataclass(frozen=True)
class RoundOutcome:
    """What an arm's model made of the training questions of a round, before it trained on them."""

    tokens: int  # that the arm had sampled in the rounds before
    right: tuple[float | None, ...]  # (Q,) as in `ArmOutcome`; every arm is asked the same questions


@dataclass(frozen=True)
class ArmOutcome:
    """What an arm got and took. Shares are of the samples of a question; one without a graded sample is None."""

    name: str
    right: tuple[float | None, ...]  # (Q,)
    sampled_tokens: int
    trained_tokens: int | None  # None where the method does not tell
    seconds: dict[str, float]  # by stage; what another run sampled for it is counted
    rounds: tuple[RoundOutcome, ...] = ()  # where there are several


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
    steps: tuple[float | None, ...] = ()  # (Q,) of the responses of the model before training, on average

    @property
    def arms(self) -> dict[str, ArmOutcome]:
        """The arms that it trained, by name."""
        return {arm.name: arm for arm in self.trained}


def flops(outcome: Outcome, arm: ArmOutcome) -> float | None:
    """2 N for each sampled token, and 6 N for each trained one; 4 N under adapters: frozen weights have no gradient.

    2 N more where activations are computed twice. As `gpo.advice.cost.operations` has it, without the prompts and
    prefixes that sampling reads, passes without gradients (a reference, a critic's values) and the adapters' own.
    """
    if outcome.parameters is None or arm.trained_tokens is None:
        return None
    method = method_of(outcome.options)
    of_token = 6.0 if getattr(method, "lora", None) is None else 4.0
    of_token += 2.0 * getattr(method, "gradient_checkpointing", False)
    return outcome.parameters * (2.0 * arm.sampled_tokens + of_token * arm.trained_tokens)


def method_of(options: Options) -> Any:
    """The method that a run with these options has."""
    return made("method", resolve(options).method)


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


def outcome_of(
    suite: str,
    cell: Cell,
    options: Options,
    files: RunDirectory,
    arms: Sequence[str],
    source: Path | None = None,
) -> Outcome:
    """What a finished run has found; `source` is the run whose first rollouts it took, and what else it could."""
    results = summarize(files)
    tokens = {arm.name: sum(arm.tokens.values()) for arm in results.arms}
    problems = files.problems("test") or []
    base = files.evaluation(BASE).read()
    return Outcome(
        suite=suite,
        cell=cell,
        options=options,
        questions=tuple(problem.id for problem in problems),
        samples=results.samples,
        base=shares(base),
        trained=tuple(
            ArmOutcome(
                name=arm,
                right=shares(files.evaluation(arm).read()),
                sampled_tokens=tokens[arm],
                trained_tokens=_trained(files, arm),
                seconds=_seconds(files, arm, options, source),
                rounds=_rounds(files, arm),
            )
            for arm in arms
        ),
        parameters=None if (shape := shape_of(resolve_model(resolve(options)))) is None else shape.parameters,
        version=__version__,
        steps=horizons(base),
    )


def _rounds(files: RunDirectory, arm: str) -> tuple[RoundOutcome, ...]:
    numbers = files.rounds(arm)
    if len(numbers) < 2:
        return ()
    spent = accumulate(sum(RoundState.of(files, arm, number).tokens().values()) for number in numbers)
    before = [0, *spent][: len(numbers)]
    return tuple(
        RoundOutcome(tokens, shares(files.fresh(arm, number).read()))
        for tokens, number in zip(before, numbers, strict=True)
    )


def _seconds(files: RunDirectory, arm: str, options: Options, source: Path | None) -> dict[str, float]:
    """By stage, with what was taken over: samples of another run, and the search whose price a control pays."""
    config = resolve(options)
    spent = dict(files.events.seconds_of(arm))
    places = [files] if source is None else [files, RunDirectory(source)]
    if source is not None:
        taken = arm in arms_alike(resolve({}, places[1].config()), config)
        stages = {Stage.ROLLOUT, Stage.LOCATE, Stage.RESET} if taken else {Stage.ROLLOUT}
        before = places[1].events.seconds_of(arm)
        spent |= {stage: max(before[stage], spent.get(stage, 0.0)) for stage in stages if stage in before}
    estimator = made("estimator", config.arms[arm])
    if isinstance(estimator, MatchedRandom):
        search = max(each.events.seconds_of_search(estimator.arm) for each in places)
        spent[Stage.LOCATE] = spent.get(Stage.LOCATE, 0.0) + search
    return {stage: round(seconds, 1) for stage, seconds in spent.items()}


def _trained(files: RunDirectory, arm: str) -> int | None:
    """Tokens that went through the model in training, of all rounds."""
    paths = [files.arm(arm, number) / "training.json" for number in files.rounds(arm)]
    metrics = [read_json(path) for path in paths if path.exists()]
    told = [row.get("trained_tokens", 0 if row.get("skipped") else None) for row in metrics]
    return None if not told or None in told else round(sum(told))
