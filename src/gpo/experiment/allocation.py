"""Which starts the tokens of a round go to, with `allocation` "stratum": where most is learned for each of them.

What a rollout teaches is taken to be p (1 - p) for a start that is solved with probability p: nothing where all
outcomes are alike. Rollouts are apportioned in proportion to p (1 - p) / tokens by D'Hondt's method, those that there
are already included, so that tokens go to starts in proportion to p (1 - p). p is known from a few rollouts only:
p (1 - p) is its mean under the posterior Beta(1/2 + right, 1/2 + wrong), so that unknown starts are tried too.

Every decision is a function of what is in the run directory, as in `budget`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heapreplace

from gpo.experiment.budget import SAFE_SHARE
from gpo.rollout.turns import in_turns
from gpo.statistics import STRATA, binned
from gpo.types import Group, Start, StartKey, Trajectory

Outcomes = Mapping[StartKey, tuple[float, int]]  # sum of the scores and number of the graded rollouts from a start


def rare_outcomes(groups: Sequence[Group], per_problem: int) -> list[Trajectory]:
    """The trajectories to search: successes of rarely solved questions and failures of nearly always solved ones.

    The others have both outcomes when sampled from the question, or only one, so that no trajectory has the rare one.
    At most `per_problem` of each problem, in the order of the groups; problems take turns.

    Args:
        groups: rollouts from questions; those of one problem are one sample of it.
    """
    graded: dict[str, list[Trajectory]] = {}
    for group in groups:
        kept = [trajectory for trajectory in group.trajectories if trajectory.score.value is not None]
        graded.setdefault(group.start.problem_id, []).extend(kept)
    rows = list(graded.values())
    strata = binned([sum(t.score.right for t in row) / len(row) if row else None for row in rows], STRATA)
    wanted = dict.fromkeys(strata["rarely"], True) | dict.fromkeys(strata["nearly always"], False)
    return in_turns(
        [[t for t in rows[place] if t.score.right == wanted[place]][:per_problem] for place in sorted(wanted)]
    )


def outcomes(groups: Iterable[Group]) -> dict[StartKey, tuple[float, int]]:
    """What is known of each start."""
    found: dict[StartKey, tuple[float, int]] = {}
    for group in groups:
        values = [t.score.value for t in group.trajectories if t.score.value is not None]
        total, count = found.get(group.start.key, (0.0, 0))
        found[group.start.key] = (total + sum(values), count + len(values))
    return found


def spread(right: float, count: int) -> float:
    """The mean of p (1 - p) under the posterior Beta(1/2 + right, 1/2 + wrong), at most 1/4."""
    a, b = right + 0.5, count - right + 0.5
    return a * b / ((a + b) * (a + b + 1))


def apportioned(
    starts: Sequence[Start], lengths: Mapping[StartKey, float], known: Outcomes, *, tokens: float, n: int, most: int
) -> list[Start]:
    """The starts that have their turn next, n rollouts each, the same one as often as it is due.

    Args:
        lengths: expected tokens of a rollout from each start.
        known: outcomes of the rollouts that there are already, which count.
        tokens: what may be spent; the last turn that does not fit is left out.
        most: turns at most.
    """
    if not starts:
        return []
    # D'Hondt: the next n rollouts go where weight / (rollouts with them) is largest; the first of equals.
    weights, counts = [], []
    for start in starts:
        right, count = known.get(start.key, (0.0, 0))
        weights.append(spread(right, count) / lengths[start.key])
        counts.append(count)
    heap = [(-weight / (count + n), i) for i, (weight, count) in enumerate(zip(weights, counts, strict=True))]
    heapify(heap)
    turns: list[Start] = []
    cost = 0.0
    while len(turns) < most:
        i = heap[0][1]
        cost += n * lengths[starts[i].key]
        if cost > tokens:
            break
        turns.append(starts[i])
        counts[i] += n
        heapreplace(heap, (-weights[i] / (counts[i] + n), i))
    return turns


def tokens_for_resets(
    resets: Sequence[Start],
    questions: Sequence[Start],
    lengths: Mapping[StartKey, float],
    known: Outcomes,
    *,
    left: int,
    n: int,
    at_most: int,
) -> int:
    """How many of the tokens that are left go to reset starts if all starts are apportioned together."""
    turns = apportioned([*resets, *questions], lengths, known, tokens=left, n=n, most=left)
    inside = {start.key for start in resets}
    wanted = sum(n * lengths[start.key] for start in turns if start.key in inside)
    return max(0, min(at_most, round(wanted)))


def next_apportioned(
    starts: Sequence[Start], lengths: Mapping[StartKey, float], known: Outcomes, *, left: int, n: int, most: int
) -> tuple[list[Start], int]:
    """The starts of the next chunk and the rollouts of each, as `budget.next_resets`, by what they teach."""
    turns = apportioned(starts, lengths, known, tokens=SAFE_SHARE * left, n=n, most=most)
    turns = turns or apportioned(starts, lengths, known, tokens=left, n=n, most=1)
    if turns or not starts:
        return turns, n
    [start] = apportioned(starts, lengths, known, tokens=float("inf"), n=n, most=1)
    affordable = round(left / lengths[start.key])
    return ([start], min(n, affordable)) if affordable > 0 else ([], n)
