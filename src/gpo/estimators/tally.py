"""What a search knows about one trajectory, and the rules that choose its critical step.

Transitions are deterministic and the reward is terminal, so the advantage of step k is A_k = V_{k+1} - V_k, and the
advantages sum to R - V_0. V_K is the observed reward R: it is known, costs nothing and has count 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import isnan, nan
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.rollout.segmenters import merge_short, spread
from gpo.statistics import exact
from gpo.types import Evidence, Group, Start, StartKey, StepScores, Trajectory

Rule = Literal["advantage", "magnitude", "drop", "authors"]
Reset = Literal["before", "after"]
Block = tuple[int, int]  # two boundaries: the first step of a block, and the step after its last

NO_EVIDENCE = Evidence()


class Tally:
    """Graded rollouts at the boundaries of one trajectory. A rollout whose grader failed does not count."""

    def __init__(self, trajectory: Trajectory) -> None:
        size = len(trajectory.boundaries)
        self.trajectory = trajectory
        self.sums = [0.0] * size
        self.counts = [0] * size
        self.tokens = 0
        self.groups: dict[int, Group] = {}
        if trajectory.score.value is not None:
            self.sums[-1], self.counts[-1] = trajectory.score.value, 1

    @property
    def values(self) -> tuple[float, ...]:
        """(K+1,) mean reward at each boundary, NaN where nothing is known."""
        return tuple(total / count if count else nan for total, count in zip(self.sums, self.counts, strict=True))

    def keep(self, boundary: int, group: Group) -> None:
        """Takes rollouts into the search's own, one group for each boundary, and into its cost."""
        if not group.trajectories:
            return
        before = self.groups[boundary].trajectories if boundary in self.groups else ()
        self.groups[boundary] = Group(group.start, before + group.trajectories)
        self.tokens += sum(len(rollout.completion.token_ids) for rollout in group.trajectories)

    def count(self, boundary: int, rollouts: Sequence[Trajectory], *, share_path: bool = False) -> None:
        """Takes rollouts from `boundary` as samples of its value.

        With `share_path`, a rollout that reproduces this trajectory's next steps token by token is also a sample of
        every prefix that it passes through: given that it got there, the rest of it was drawn from there.
        """
        last = len(self.counts) - 1
        for rollout in rollouts:
            reward = rollout.score.value
            if reward is None:
                continue
            reached = self.reached(rollout) if share_path else boundary
            for passed in range(boundary, max(boundary, min(reached, last - 1)) + 1):
                self.sums[passed] += reward
                self.counts[passed] += 1

    def reached(self, rollout: Trajectory) -> int:
        """The last boundary up to which a rollout is this trajectory."""
        ours, theirs = self.trajectory.response_ids, rollout.response_ids
        pairs = enumerate(zip(ours, theirs, strict=False))
        same = next((i for i, (our, their) in pairs if our != their), min(len(ours), len(theirs)))
        return bisect_right(self.trajectory.step_ends, same)

    def scores(self, block: Block | None, reset: Reset, confidence: float) -> StepScores:
        """The result, with a Clopper-Pearson interval of each value."""
        values = self.values
        last = len(values) - 1
        intervals = [exact(*pair, confidence) for pair in zip(self.sums, self.counts, strict=True)]
        lower, upper = [i.lower for i in intervals], [i.upper for i in intervals]
        lower[last] = upper[last] = values[last]
        return StepScores(
            trajectory_id=self.trajectory.id,
            values=values,
            counts=tuple(self.counts),
            lower=tuple(lower),
            upper=tuple(upper),
            advantages=tuple(after - before for before, after in pairwise(values)),
            critical_step=None if block is None else block[0],
            reset_boundary=reset_boundary(block, reset, last),
            tokens=self.tokens,
            rollouts=tuple(self.groups.values()),
        )


def revalued(scores: StepScores, values: Sequence[float], block: Block | None, reset: Reset, **more: Any) -> StepScores:
    """A result with other values (K+1,), and with the block that these make critical; `more` are fields of it too."""
    return replace(
        scores,
        values=tuple(values),
        advantages=tuple(after - before for before, after in pairwise(values)),
        critical_step=None if block is None else block[0],
        reset_boundary=reset_boundary(block, reset, len(values) - 1),
        **more,
    )


def reset_boundary(block: Block | None, reset: Reset, last: int) -> int | None:
    """Before the block or after it; after the last step nothing is left to sample, so that it is then before it too."""
    if block is None:
        return None
    return block[1] if reset == "after" and block[1] < last else block[0]


def explore(
    asks: Sequence[tuple[Tally, int]],
    n: int,
    sample: Sample,
    *,
    share_path: bool = False,
    followers: Sequence[tuple[Tally, Tally]] = (),
) -> None:
    """n rollouts for each (tally, boundary), all in one call, so that the engine's batch is full.

    Once nothing is left to sample nothing is asked, and what is not known stays unknown.

    Args:
        followers: pairs of `share_starts`; what the first of a pair gets at boundary 0 counts for the second too.
    """
    if not asks or sample.left == 0:
        return
    starts: list[Start] = [tally.trajectory.prefix(boundary) for tally, boundary in asks]
    for (tally, boundary), group in zip(asks, sample(starts, n), strict=True):
        tally.keep(boundary, group)
        tally.count(boundary, group.trajectories, share_path=share_path)
    for leader, follower in followers:
        if 0 in leader.groups:
            follower.count(0, leader.groups[0].trajectories, share_path=share_path)


def known_rollouts(trajectories: Sequence[Trajectory], evidence: Evidence) -> list[Trajectory]:
    """The round's rollouts from the questions; outside a run, where nobody tells of them, the trajectories given.

    What is said of a question from the latter is biased unless they are all of its rollouts, or a choice that does not
    depend on their rewards.
    """
    return [t for group in evidence.groups for t in group.trajectories] or list(trajectories)


def searched_rollouts(evidence: Evidence) -> list[Group]:
    """What the searches before this call have sampled."""
    return [group for scores in evidence.scores for group in scores.rollouts]


def siblings(trajectories: Sequence[Trajectory], known: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """For each trajectory the other graded ones among the known that began at its question: samples of its V_0.

    Its own reward is no sample: given the trajectory it is a constant.
    """
    graded: dict[StartKey, list[Trajectory]] = {}
    for other in known:
        if not other.start.prefix_ids and other.score.value is not None:
            graded.setdefault(other.start.key, []).append(other)
    return [[other for other in graded.get(t.prefix(0).key, ()) if other.id != t.id] for t in trajectories]


def share_starts(
    plans: Sequence[tuple[Tally, list[int]]],
    trajectories: Sequence[Trajectory],
    evidence: Evidence,
    n: int,
    *,
    share_path: bool = False,
) -> list[tuple[Tally, Tally]]:
    """Takes V_0 from everything sampled from the question, and crosses boundary 0 off the plans that need no more.

    Where there are fewer than n others, one plan of the question keeps boundary 0 for all; the pairs (leader, follower)
    returned say whose rollouts from boundary 0 are to be counted for whom.

    Args:
        trajectories: all of the call, planned or not; see `known_rollouts`.
    """
    known = known_rollouts(trajectories, evidence)
    known += [rollout for group in searched_rollouts(evidence) for rollout in group.trajectories]
    leaders: dict[StartKey, Tally] = {}
    pairs: list[tuple[Tally, Tally]] = []
    of_plans = siblings([tally.trajectory for tally, _ in plans], known)
    for (tally, boundaries), rollouts in zip(plans, of_plans, strict=True):
        tally.count(0, rollouts, share_path=share_path)
        if not boundaries:
            continue
        if len(rollouts) < n:
            leader = leaders.setdefault(tally.trajectory.prefix(0).key, tally)
            if leader is tally:
                continue
            pairs.append((leader, tally))
        boundaries.remove(0)
    return pairs


def grid(trajectory: Trajectory, max_steps: int | None = None, min_step_tokens: int = 1) -> tuple[int, ...]:
    """The boundaries to look at, from 0 to K: steps that are too short or too many are joined to blocks."""
    ends = spread(merge_short(trajectory.step_ends, min_step_tokens), max_steps)
    return (0, *(trajectory.step_ends.index(end) + 1 for end in ends))


def largest(merit: Sequence[float]) -> Block | None:
    """The step with the largest merit (K,), the first of equals; None if none is above 0."""
    step = max(range(len(merit)), key=merit.__getitem__, default=0)
    return (step, step + 1) if max(merit, default=0.0) > 0 else None


def choose(values: Sequence[float], rule: Rule) -> Block | None:
    """The critical block by a rule; the first of equals. Boundaries without a value are passed over.

    advantage: argmax A_k (GPO, Algorithm 1); magnitude: argmax |A_k|; drop: argmin A_k; authors: argmax V_k over k < K,
    the step that follows the best prefix. None if no step stands out: all values are equal, or for `authors` no prefix
    ever succeeded.
    """
    blocks = list(pairwise(k for k, value in enumerate(values) if not isnan(value)))
    if not blocks:
        return None
    if rule == "authors":
        best = max(blocks, key=lambda block: values[block[0]])
        return best if values[best[0]] > 0 else None
    if all(values[before] == values[after] for before, after in blocks):
        return None
    return max(blocks, key=lambda block: change(values, block, rule))


def change(values: Sequence[float], block: Block, rule: Rule) -> float:
    """The advantage of a block, signed so that the critical one has the largest."""
    advantage = values[block[1]] - values[block[0]]
    return {"magnitude": abs(advantage), "drop": -advantage}.get(rule, advantage)


def check(search: Any) -> None:
    """Raises ConfigError for settings that no estimator takes, those of a `Literal` type among them."""
    lineage = type(search).__mro__  # it may be inherited from
    ours = next((each for each in lineage if each.__module__.startswith("gpo.")), lineage[0])
    name, kinds = ours.__name__, get_type_hints(ours)
    for key, kind in kinds.items():
        if get_origin(kind) is Literal and getattr(search, key) not in get_args(kind):
            raise ConfigError(f"{name} got {key}={getattr(search, key)!r}; expected {' or '.join(get_args(kind))}.")
    if kinds.get("rollouts") is int and search.rollouts < 1:
        raise ConfigError(f"{name} got rollouts={search.rollouts}; expected at least 1 for each boundary.")
    if "confidence" in kinds and not 0 < search.confidence < 1:
        raise ConfigError(f"{name} got confidence={search.confidence}; expected a level between 0 and 1, such as 0.95.")
