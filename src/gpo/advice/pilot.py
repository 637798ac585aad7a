"""What a few questions tell of a run: how often each is solved, how long responses are, what a search takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isnan, nan
from statistics import fmean, median

from gpo.contracts import Tokenizer
from gpo.experiment.budget import search_weight
from gpo.preferences.pairs import build_pairs
from gpo.statistics import STRATA
from gpo.types import Group, PairSettings, StepScores, Trajectory

DEFAULT = PairSettings()


@dataclass(frozen=True)
class Asked:
    """A question of the pilot. Lengths are tokens, means over its responses."""

    id: str
    prompt: int
    response: float
    steps: float
    right: int
    wrong: int
    kinds_right: tuple[int, ...]  # how often each different right response was given
    kinds_wrong: tuple[int, ...]
    searched_pairs: int | None = None  # preference pairs with what a search of one of its trajectories sampled

    @property
    def graded(self) -> int:
        return self.right + self.wrong

    @property
    def share(self) -> float:
        """Of its responses, that are right."""
        return self.right / self.graded

    @property
    def stratum(self) -> str:
        return next(name for name, most in STRATA if self.share <= most)

    @property
    def variance(self) -> float:
        """p (1 - p), without bias; NaN of a single response."""
        return self.right * self.wrong / (self.graded * (self.graded - 1)) if self.graded > 1 else nan


@dataclass(frozen=True)
class Searched:
    """A trajectory that the pilot searched."""

    tokens: int
    rollouts: int
    rollout_tokens: float  # mean of a rollout; NaN without one
    prefix: int | None  # tokens before the reset; None: it resets nowhere
    tail: int | None  # tokens behind it
    value: float  # at the reset, by rollouts that began there or passed; NaN: none did

    @property
    def practice(self) -> float:
        """v (1 - v) / tokens of a rollout from the reset; NaN where it is not known."""
        return self.value * (1 - self.value) / self.tail if self.tail else nan


@dataclass(frozen=True)
class Pilot:
    """What was seen. At least one question has a graded response."""

    asked: tuple[Asked, ...]
    searched: tuple[Searched, ...]
    repeats: tuple[float, ...]  # of each step of each trajectory: probability to be taken again, token by token
    reached: float  # share of a trajectory's boundaries that a rollout from its question tells of
    weight: float  # mean tokens of one rollout from every boundary of a trajectory
    search: str | None  # the arm whose search was tried

    @property
    def prompt(self) -> float:
        return fmean(each.prompt for each in self.asked)

    @property
    def response(self) -> float:
        return fmean(each.response for each in self.asked)

    @property
    def steps(self) -> float:
        return fmean(each.steps for each in self.asked)

    @property
    def success(self) -> float:
        """Mean share of right responses."""
        return fmean(each.share for each in self.asked)

    @property
    def mixed(self) -> float:
        """Share of the questions with right and wrong responses."""
        return fmean(0 < each.right < each.graded for each in self.asked)

    @property
    def strata(self) -> dict[str, int]:
        """Questions of each stratum, by how many of their responses are right."""
        counts = Counter(each.stratum for each in self.asked)
        return {name: counts[name] for name, _ in STRATA}

    @property
    def repeat(self) -> float:
        """The median of `repeats`; NaN where the engine tells no log-probabilities."""
        return median(self.repeats) if self.repeats else nan

    @property
    def search_tokens(self) -> float:
        """Of a searched trajectory; NaN without one."""
        return fmean(each.tokens for each in self.searched) if self.searched else nan

    @property
    def tail(self) -> float:
        """Mean tokens behind a reset; NaN without one."""
        tails = [each.tail for each in self.searched if each.tail is not None]
        return fmean(tails) if tails else nan

    @property
    def fresh_practice(self) -> float:
        """Mean p (1 - p) of a question over mean tokens of a response: what a token of practice there is worth."""
        known = [each.variance for each in self.asked if not isnan(each.variance)]
        return fmean(known) / self.response if known else nan

    @property
    def reset_practice(self) -> float:
        """The same behind the resets that the search found; NaN without one."""
        known = [each.practice for each in self.searched if not isnan(each.practice)]
        return fmean(known) if known else nan


def pilot_of(
    groups: Iterable[Group],
    tokenizer: Tokenizer,
    scores: Iterable[StepScores] = (),
    search: str | None = None,
    settings: PairSettings = DEFAULT,
) -> Pilot | None:
    """What rollouts from questions and searches of some of their trajectories tell; None if nothing is graded.

    Args:
        search: the arm whose search `scores` are of.
        settings: how pairs are made.
    """
    groups, scores = list(groups), list(scores)
    sampled: dict[str, list[Group]] = {}
    for score in scores:
        for group in score.rollouts:
            sampled.setdefault(group.start.problem_id, []).append(group)
    asked = []
    for group in groups:
        more = sampled.get(group.start.problem_id)
        pairs = None if more is None else len(build_pairs([group, *more], tokenizer, settings=settings))
        if (found := _asked(group, pairs)) is not None:
            asked.append(found)
    if not asked:
        return None
    trajectories = {trajectory.id: trajectory for group in groups for trajectory in group.trajectories}
    with_steps = [trajectory for trajectory in trajectories.values() if trajectory.step_ends]
    chances = [chances for each in with_steps if (chances := step_chances(each)) is not None]
    return Pilot(
        asked=tuple(asked),
        searched=tuple(_searched(score, trajectories[score.trajectory_id]) for score in scores),
        repeats=tuple(chance for each in chances for chance in each),
        reached=fmean(map(_reach, chances)) if chances else nan,
        weight=fmean(search_weight(each) for each in with_steps) if with_steps else nan,
        search=search,
    )


def step_chances(trajectory: Trajectory) -> tuple[float, ...] | None:
    """(K,) how likely each step is taken again, token by token; None without log-probabilities."""
    nats = trajectory.completion.logprobs
    if nats is None or trajectory.start.prefix_ids:
        return None
    return tuple(exp(sum(nats[begin:end])) for begin, end in pairwise(trajectory.boundaries))


def _reach(chances: Sequence[float]) -> float:
    """Share of the K boundaries before a step that a rollout from the question passes on average."""
    passed, here = 0.0, 1.0
    for chance in chances:
        passed += here
        here *= chance
    return passed / len(chances)


def _asked(group: Group, searched_pairs: int | None) -> Asked | None:
    graded = [each for each in group.trajectories if each.score.value is not None]
    if not graded:
        return None
    right = [each.completion.token_ids for each in graded if each.score.right]
    wrong = [each.completion.token_ids for each in graded if not each.score.right]
    return Asked(
        id=group.start.problem_id,
        prompt=len(group.start.prompt_ids),
        response=fmean(len(each.completion.token_ids) for each in group.trajectories),
        steps=fmean(len(each.step_ends) for each in group.trajectories),
        right=len(right),
        wrong=len(wrong),
        kinds_right=tuple(Counter(right).values()),
        kinds_wrong=tuple(Counter(wrong).values()),
        searched_pairs=searched_pairs,
    )


def _searched(score: StepScores, trajectory: Trajectory) -> Searched:
    lengths = [len(each.completion.token_ids) for group in score.rollouts for each in group.trajectories]
    boundary = score.reset_boundary
    prefix = None if boundary is None else trajectory.boundaries[boundary]
    return Searched(
        tokens=score.tokens,
        rollouts=len(lengths),
        rollout_tokens=fmean(lengths) if lengths else nan,
        prefix=prefix,
        tail=None if prefix is None else len(trajectory.response_ids) - prefix,
        value=nan if boundary is None else score.values[boundary],
    )
