"""What a report reads of a run directory: searched trajectories as text, and what was sampled afresh from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import isnan
from typing import Any

from gpo.errors import ConfigError, DataError, GPOError
from gpo.report.texts import StepTexts, text_lines
from gpo.statistics import Interval, exact
from gpo.storage.directory import RunDirectory
from gpo.types import Group, Problem, StartKey, StepScores, Trajectory

Block = tuple[int, int]  # two boundaries between which no value is known


def success(rollouts: Sequence[Trajectory]) -> Interval:
    """The mean reward of graded rollouts, with its exact interval."""
    rewards = [t.score.value for t in rollouts if t.score.value is not None]
    return exact(sum(rewards), len(rewards))


@dataclass(frozen=True)
class Searched:
    """One trajectory, what a search says of it, and rollouts from its boundaries."""

    problem: Problem
    trajectory: Trajectory
    steps: tuple[str, ...]  # (K,) texts
    scores: StepScores | None  # None where nothing was searched
    search: dict[int, tuple[Trajectory, ...]] = field(default_factory=dict)  # by boundary; the values come from these
    fresh: dict[int, tuple[Trajectory, ...]] = field(default_factory=dict)  # sampled after the search had chosen

    @property
    def critical(self) -> int | None:
        return None if self.scores is None else self.scores.critical_step

    @property
    def gain(self) -> float | None:
        """The advantage of the critical step as the search saw it; the largest of several noisy ones is too large."""
        if self.scores is None or self.critical is None or isnan(self.scores.advantages[self.critical]):
            return None
        return self.scores.advantages[self.critical]

    @property
    def blocks(self) -> list[Block]:
        """Neighbouring boundaries with a value. Most blocks are one step."""
        values = () if self.scores is None else self.scores.values
        return list(pairwise(k for k, value in enumerate(values) if not isnan(value)))

    def fresh_value(self, boundary: int) -> Interval:
        """The value of a boundary by rollouts that had no part in the choice of the critical step; NaN without any.

        The last value is the observed reward, which needs no samples.
        """
        return success(self.fresh.get(boundary, ()))


@dataclass(frozen=True)
class Reading:
    """A run as a report shows it."""

    files: RunDirectory
    config: dict[str, Any]
    arm: str | None  # whose search is shown; None where no arm has searched
    number: int  # the round that is shown
    problems: dict[str, Problem]
    first: list[Group]  # rollouts from the questions, which no search has chosen
    searched: list[Searched]

    @property
    def run(self) -> str:
        return self.files.path.resolve().name

    @property
    def label(self) -> str:
        """Whose search this is, such as "gpo", or "gpo, round 3" where there are several."""
        rounds = 1 if self.arm is None else len(self.files.rounds(self.arm))
        return f"{self.arm or 'none'}{f', round {self.number}' if rounds > 1 else ''}"

    @property
    def key(self) -> str:
        """The search in links."""
        return f"{self.arm or 'none'}-{self.number}"

    def success(self, problem_id: str) -> list[float]:
        """Rewards of the first rollouts of a question."""
        return self._rewards.get(problem_id, [])

    @cached_property
    def _rewards(self) -> dict[str, list[float]]:
        return {
            group.start.problem_id: [t.score.value for t in group.trajectories if t.score.value is not None]
            for group in self.first
        }


def read_run(files: RunDirectory, arm: str | None = None, number: int | None = None) -> Reading:
    """Read the trajectories that an arm has searched; where none has, the first one of each question.

    Args:
        arm: None takes the first arm whose search has values, `gpo` before the others.
        number: the round, from 1; None takes the last one that the arm has searched in.

    Raises:
        ConfigError: this is no run directory, or it has no such arm or round.
        DataError: nothing was sampled yet, or a file cannot be used.
    """
    return next(read_searches(files, arm, number))


def read_searches(files: RunDirectory, arm: str | None = None, number: int | None = None) -> Iterator[Reading]:
    """Read what `read_run` reads for every search of a run, or of one arm or round; what that takes comes first.

    Raises:
        ConfigError, DataError: as `read_run`.
    """
    reader, found = Reader(files), False
    for name, each in searches(files, arm, number):
        found = True
        yield reader.read(name, each)
    if not found:
        if number is not None and number != 1:
            raise ConfigError(f"{files.path} has no search in round {number}.")
        yield reader.read_unsearched()


def searches(files: RunDirectory, arm: str | None = None, number: int | None = None) -> Iterator[tuple[str, int]]:
    """Arm and round of searches that have values: of `gpo` before other arms, of later rounds before earlier.

    Raises:
        ConfigError: the run has no such arm.
    """
    if arm is not None:
        files.check_arm(arm)
    for name in [arm] if arm is not None else sorted(files.arms(), key=lambda name: name != "gpo"):
        for each in reversed(files.rounds(name)) if number is None else [number]:
            scores = files.scores(name, each).read()
            if any(not isnan(value) for score in scores for value in score.values[:-1]):
                yield name, each


@dataclass(frozen=True)
class Reader:
    """Reads searches of one run, and once what they share: all arms begin with the first round's rollouts."""

    files: RunDirectory

    def read(self, arm: str, number: int) -> Reading:
        first = self.rollouts if number == 1 else self._known(self.files.fresh(arm, number).read())
        fresh = self.resets if number == 1 else rollouts_by_start(self.files.resets(arm, number).read())
        items = []
        for trajectory, score in self.files.searched(arm, number):
            own = rollouts_by_start(score.rollouts)
            starts = [trajectory.prefix(k).key for k in range(len(trajectory.boundaries))]
            items.append(
                Searched(
                    self.problems[trajectory.start.problem_id],
                    trajectory,
                    self.texts(trajectory),
                    score,
                    {k: own[start] for k, start in enumerate(starts) if start in own},
                    {k: fresh[start] for k, start in enumerate(starts) if start in fresh},
                )
            )
        return Reading(self.files, self.config, arm, number, self.problems, first, items)

    def read_unsearched(self) -> Reading:
        rest = [group.trajectories[0] for group in self.rollouts if group.trajectories]
        items = [Searched(self.problems[t.start.problem_id], t, self.texts(t), None) for t in rest]
        return Reading(self.files, self.config, None, 1, self.problems, self.rollouts, items)

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.files.config()

    @cached_property
    def problems(self) -> dict[str, Problem]:
        return {problem.id: problem for problem in self.files.problems("train") or ()}

    @cached_property
    def texts(self) -> Texts:
        return Texts(self.files)

    @cached_property
    def rollouts(self) -> list[Group]:
        return self._known(self.files.rollouts.read())

    @cached_property
    def resets(self) -> dict[StartKey, tuple[Trajectory, ...]]:
        """Those of all arms in the first round, which are rollouts from prefixes of the same trajectories."""
        return rollouts_by_start(group for arm in self.files.arms() for group in self.files.resets(arm).read())

    def _known(self, groups: list[Group]) -> list[Group]:
        path = self.files.path
        if not groups:
            raise DataError(f"{path} has no trajectories yet. Sample some: gpo rollout {path}")
        starts = [start for group in groups for start in (group.start, *(t.start for t in group.trajectories))]
        if missing := {start.problem_id for start in starts} - self.problems.keys():
            raise DataError(f"{path}: problem {min(missing)!r} of rollouts.jsonl is not in problems.jsonl.")
        return groups


def rollouts_by_start(groups: Iterable[Group]) -> dict[StartKey, tuple[Trajectory, ...]]:
    found: dict[StartKey, list[Trajectory]] = defaultdict(list)
    for group in groups:
        found[group.start.key].extend(group.trajectories)
    return {start: tuple(trajectories) for start, trajectories in found.items()}


@dataclass(frozen=True)
class Texts(StepTexts):
    """The texts of a trajectory's steps: its lines where they are its steps, else cut with the run's tokenizer.

    Where the tokenizer is not here the response is its first step, and the others have no text.
    """

    @cached_property
    def _by_lines(self) -> bool:
        return bool(self.files.config().get("segmenter", {}).get("name", "newline") == "newline")

    @cached_property
    def _cuts(self) -> bool:
        try:
            return self.tokenizer is not None
        except GPOError:  # a model that is not here any more
            return False

    def __call__(self, trajectory: Trajectory) -> tuple[str, ...]:
        if self._by_lines and (lines := text_lines(trajectory)) is not None:
            return tuple(lines)
        if self._cuts:
            return super().__call__(trajectory)
        steps = len(trajectory.step_ends)
        return f"{trajectory.completion.text}\n(all {steps} steps)", *(f"(step {k})" for k in range(2, steps + 1))
