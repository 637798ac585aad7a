"""A run: the stages of GPO on a run directory, each of which goes on where it was left."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from gpo.errors import ConfigError
from gpo.estimators.matched import MatchedRandom
from gpo.estimators.none import NoReset
from gpo.experiment import stages, training, workers
from gpo.experiment.metrics import write_rounds
from gpo.experiment.plan import foretell
from gpo.experiment.resets import reset
from gpo.experiment.resources import Resources
from gpo.experiment.schedule import Unit
from gpo.experiment.search import locate
from gpo.experiment.workers import Workers
from gpo.preferences.pairs import read_pairs
from gpo.report.results import Results, summarize, write_results
from gpo.storage.directory import BASE, RunDirectory
from gpo.storage.rounds import RoundState
from gpo.types import Group, Pair, Stage, StepScores

# What a round does, in this order; each step finds what those before it have written.
ROUND: dict[Stage, Callable[[Resources, RoundState], None]] = {
    Stage.ROLLOUT: stages.rollout,
    Stage.LOCATE: locate,
    Stage.RESET: reset,
    Stage.BUILD: stages.build,
    Stage.TRAIN: training.train,
}


class Run(Resources):
    """The stages on one run directory. A stage does what is left of it, and what is missing before it.

    With several `rounds` each goes on with the model that the one before has trained; `train` goes through all of them.
    A run is for one thread at a time.
    """

    def all(self) -> Results:
        """Every stage for every arm, then tables and plots. Without test questions nothing is evaluated."""
        evaluation = [Stage.EVALUATE] if self.config.test_problems != 0 else []
        with self.held():
            self.every(Stage.LOCATE, Stage.RESET, Stage.BUILD, Stage.TRAIN, *evaluation)
            return self.report()

    def every(self, *stages: Stage) -> None:
        """These stages, and what is missing before them, for every arm: side by side where there are several workers.

        Args:
            stages: in their order. Evaluation is of the model before training too.

        Raises:
            ConfigError: there are none, or one that is no stage of an arm.
        """
        known = (*ROUND, Stage.EVALUATE)
        if not stages or not all(stage in known for stage in stages):
            raise ConfigError(f"Got the stages {list(map(str, stages))}, expected some of {', '.join(known)}.")
        if Stage.EVALUATE in stages:
            self._refuse_without_questions()
        with self.held():
            self._refuse_traces(stages[-1])
            several = workers.count(self, len(self.config.arms if stages != (Stage.LOCATE,) else self._searching()))
            if several > 1:  # what arms share, and what one copies from another
                stages = (Stage.ROLLOUT, Stage.LOCATE, *(stage for stage in stages if stage != Stage.LOCATE))
            arms = list(self.config.arms)
            names = {Stage.ROLLOUT: arms[:1], Stage.EVALUATE: self.models()}
            units = [Unit(stage, name) for stage in stages for name in names.get(stage, arms)]
            needs = {unit: self._needs(unit, stages) for unit in units} if several > 1 else {}
            with Workers(self, several, units, needs) as beside:
                beside.work()

    def do(self, unit: Unit) -> None:
        """A stage of an arm or of the model before training."""
        if unit.stage == Stage.TRAIN:
            self.train(unit.name)
        elif unit.stage == Stage.EVALUATE:
            self.evaluate(unit.name)
        else:
            self._advance(unit.name, 1, unit.stage)

    def _searching(self) -> list[str]:
        """The arms that have a search of their own."""
        found = {arm: self.estimator(arm, None) for arm in self.config.arms}
        return [arm for arm, estimator in found.items() if not isinstance(estimator, NoReset | MatchedRandom)]

    def _needs(self, unit: Unit, stages: Sequence[Stage]) -> list[Unit]:
        """What is to be done before."""
        if unit.stage == Stage.ROLLOUT:
            return []
        before = [Unit(stage, unit.name) for stage in stages[: stages.index(unit.stage)]]
        before.append(Unit(Stage.ROLLOUT, next(iter(self.config.arms))))
        if unit.stage == Stage.LOCATE:
            estimator = self.estimator(unit.name, None)
            if isinstance(estimator, MatchedRandom):
                before.append(Unit(Stage.LOCATE, estimator.arm))
        return before

    def models(self) -> list[str]:
        """What is evaluated: base and the arms."""
        return [BASE, *self.config.arms]

    def rollout(self, arm: str | None = None, number: int = 1) -> list[Group]:
        """Rollouts from the questions of a round; those of the first round are the same for all arms."""
        return self._advance(arm or next(iter(self.config.arms)), number, Stage.ROLLOUT).rollouts.read()

    def locate(self, arm: str, number: int = 1) -> list[StepScores]:
        """Search trajectories for their critical steps until the search's share of the budget is spent."""
        return self._advance(arm, number, Stage.LOCATE).scores.read()

    def reset(self, arm: str, number: int = 1) -> list[Group]:
        """Rollouts from the reset boundaries, and from the questions, until the arm's budget is spent."""
        state = self._advance(arm, number, Stage.RESET)
        return [*state.resets.read(), *state.more.read()]

    def build(self, arm: str, number: int = 1) -> list[Pair]:
        """Preference pairs of what the arm has sampled in a round."""
        self._advance(arm, number, Stage.BUILD)
        return read_pairs(self.files.pairs(arm, number))

    def train(self, arm: str) -> Path:
        """Train the arm's model, round after round; the directory of the last checkpoint."""
        self.check_arm(arm)
        with self.held():
            if training.trained(self, arm) < self.config.rounds:
                self._advance(arm, self.config.rounds, Stage.TRAIN)
            if self.config.rounds > 1:
                write_rounds(self.files, arm)
            for leftover in ("unfinished", "checkpoints"):
                shutil.rmtree(self.files.arm(arm) / leftover, ignore_errors=True)
            return self.files.model(arm)

    def evaluate(self, name: str = BASE) -> list[Group]:
        """Sample the test questions with an arm's model, or with the model before training (`base`).

        All models answer the same questions with the same seeds, so that they can be compared question by question.

        Raises:
            ConfigError: the run has no test questions, or no such arm.
        """
        self._refuse_without_questions()
        if name != BASE:
            self.check_arm(name)
        with self.held():
            stages.evaluate(self, name, None if name == BASE else self.train(name))
            return self.files.evaluation(name).read()

    def report(self) -> Results:
        """Tables and plots of what is there."""
        with self.held(), self.piece(Stage.REPORT, None) as done:
            results = report(self.files)
            done(1, 1, "report", 0)
        return results

    def foretell(self, length: float) -> dict[str, int]:
        """Tokens that the run samples at most, by what they are for, if responses have a mean length of that many."""
        return foretell(self.config, len(self.problems("train")), len(self.problems("test")), length)

    def _advance(self, arm: str, number: int, last: Stage) -> RoundState:
        """Do what is left of a round up to a stage, and of the rounds before it.

        Raises:
            ConfigError: there is no such arm or round, or the run holds traces, which are searched and not trained on.
        """
        self.check_arm(arm)
        self.check_round(number)
        self._refuse_traces(last)
        with self.held():
            for earlier in range(training.trained(self, arm) + 1, number):
                self._advance(arm, earlier, Stage.TRAIN)
            state = RoundState.of(self.files, arm, number)
            for stage, do in ROUND.items():
                if stage != Stage.BUILD or last == Stage.BUILD or self.trains_on_pairs:
                    do(self, state)
                if stage == last:
                    break
        return state

    def _refuse_without_questions(self) -> None:
        """Raises: ConfigError if the run has no test questions."""
        if self.config.test_problems == 0:
            raise ConfigError(
                f"{self.files.path} has no test questions. Add --test_problems NUMBER, or: gpo evaluate --models"
            )

    def _refuse_traces(self, last: Stage) -> None:
        """Raises: ConfigError if the run holds traces, and more is asked than a search."""
        if last not in (Stage.ROLLOUT, Stage.LOCATE) and self.files.traces.exists():
            raise ConfigError(
                f"{self.files.path} holds solutions that somebody else wrote: they can be searched (gpo locate "
                f"{self.files.path}), and nothing can be trained on them. Start a run of its own: gpo run DIRECTORY."
            )


def report(files: RunDirectory) -> Results:
    """Write tables and plots of what a run directory holds."""
    from gpo.report.plots import write_plots

    results = summarize(files)
    write_results(files, results)
    write_plots(files, results)
    return results
