"""Searched trajectories of a run, with everything that a page shows of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isnan, nan

from gpo.directory import RunDirectory
from gpo.errors import GPOError
from gpo.plots import step_texts
from gpo.report.kinds import Kinds
from gpo.stages import subtask
from gpo.statistics import Interval, exact
from gpo.texts import StepTexts
from gpo.types import Group, Problem, StepScores, Trajectory, Verdict

SHOWN = 3  # right ones, and as many that are not, from one prefix


@dataclass(frozen=True, slots=True)
class Continuation:
    """How the model went on from a prefix."""

    text: str
    verdict: Verdict
    answer: str | None


@dataclass(frozen=True, slots=True)
class Prefix:
    """A boundary beside the critical step, and continuations from it."""

    boundary: int
    search: Interval  # the share of right ones among the rollouts that the step was chosen by
    fresh: Interval  # among the resets, sampled after the choice; n is 0 where there are none
    continuations: tuple[Continuation, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """A trajectory that an arm has searched."""

    arm: str
    problem: Problem
    trajectory: Trajectory
    scores: StepScores
    steps: tuple[str, ...]  # (K,) texts
    kinds: tuple[str, ...]  # (K,) the steps with names and numbers masked
    first: Interval  # success of the question's first rollouts, of this one aside
    prefixes: tuple[Prefix, ...]  # before and after the critical step; none if no step stands out

    @property
    def anchor(self) -> str:
        """The same in every report of the same run."""
        return "t" + blake2b(f"{self.arm}|{self.trajectory.id}".encode(), digest_size=5).hexdigest()

    @property
    def subtask(self) -> str:
        return subtask(self.problem)

    @property
    def gain(self) -> float:
        """The advantage of the critical step as the search saw it; NaN without one."""
        critical = self.scores.critical_step
        return nan if critical is None else self.scores.advantages[critical]


def load_looks(files: RunDirectory) -> list[Look]:
    """Every trajectory of every arm that was given values before its end, the largest advantages first.

    Raises:
        DataError: the run directory holds what is no run.
    """
    groups = files.rollouts.read()
    problems = {problem.id: problem for problem in files.problems("train") or []}
    trajectories = {t.id: t for group in groups for t in group.trajectories}
    siblings = {group.start.problem_id: group.trajectories for group in groups}
    masks = Kinds([*(p.question for p in problems.values()), *(t.completion.text for t in trajectories.values())])
    texts = _Texts(files)
    looks = []
    for arm in files.arms():
        resets: dict[tuple[int, ...], list[Trajectory]] = defaultdict(list)
        for group in files.resets(arm).read():
            resets[group.start.token_ids] += group.trajectories
        for scores in files.scores(arm).read():
            trajectory = trajectories.get(scores.trajectory_id)
            if trajectory is None or trajectory.start.problem_id not in problems or not _valued(scores):
                continue
            steps = texts(trajectory)
            others = [t for t in siblings[trajectory.start.problem_id] if t.id != trajectory.id]
            looks.append(
                Look(
                    arm=arm,
                    problem=problems[trajectory.start.problem_id],
                    trajectory=trajectory,
                    scores=scores,
                    steps=steps,
                    kinds=tuple(map(masks, steps)),
                    first=success(others),
                    prefixes=_prefixes(trajectory, scores, resets),
                )
            )
    return sorted(looks, key=lambda look: (isnan(look.gain), -abs(look.gain) if not isnan(look.gain) else 0.0))


def success(trajectories: Sequence[Trajectory]) -> Interval:
    """The mean score of graded trajectories, with its exact interval."""
    graded = [t.score.value for t in trajectories if t.score.value is not None]
    return exact(sum(graded), len(graded))


def _valued(scores: StepScores) -> bool:
    return any(not isnan(value) for value in scores.values[:-1])


def _prefixes(
    trajectory: Trajectory, scores: StepScores, resets: dict[tuple[int, ...], list[Trajectory]]
) -> tuple[Prefix, ...]:
    if scores.critical_step is None:
        return ()
    found = []
    for boundary in (scores.critical_step, scores.critical_step + 1):
        if boundary == len(trajectory.step_ends):
            break
        start = trajectory.prefix(boundary)
        searched = rollouts_at(scores.rollouts, trajectory.boundaries[boundary])
        fresh = resets.get(start.token_ids, []) if boundary else []
        found.append(Prefix(boundary, success(searched), success(fresh), _examples([*fresh, *searched])))
    return tuple(found)


def rollouts_at(groups: Sequence[Group], offset: int) -> list[Trajectory]:
    """A search's own rollouts from one boundary, given by its token offset."""
    return [t for group in groups if len(group.start.prefix_ids) == offset for t in group.trajectories]


def _examples(rollouts: Sequence[Trajectory]) -> tuple[Continuation, ...]:
    """Different ones, some right, some not."""
    by_text = {t.completion.text: t for t in reversed(rollouts)}
    chosen = [[t for t in reversed(by_text.values()) if t.score.right is right][:SHOWN] for right in (True, False)]
    return tuple(Continuation(t.completion.text, t.score.verdict, t.score.answer) for t in [*chosen[0], *chosen[1]])


class _Texts:
    """Texts of steps: lines where steps are lines, else by the run's tokenizer, else numbers."""

    def __init__(self, files: RunDirectory) -> None:
        self.lines = files.config().get("segmenter", {}).get("name") == "newline"
        self.by_token: StepTexts | None = StepTexts(files)

    def __call__(self, trajectory: Trajectory) -> tuple[str, ...]:
        lines = step_texts(trajectory)
        if self.by_token is None or (self.lines and lines[:1] != ["step 1"]):
            return tuple(lines)
        try:
            return self.by_token(trajectory)
        except (GPOError, OSError, ImportError, ValueError):  # the model is not here any more
            self.by_token = None
            return tuple(lines)
