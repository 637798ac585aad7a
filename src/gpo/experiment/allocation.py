"""Which starts the tokens of a round go to, with `allocation` "stratum": where most is learned for each of them.

What a rollout teaches is taken to be p (1 - p) for a start that is solved with probability p: nothing where all
outcomes are alike. Rollouts are apportioned in proportion to p (1 - p) / tokens by D'Hondt's method, those that there
are already included, so that tokens go to starts in proportion to p (1 - p). p is known from a few rollouts only:
p (1 - p) is its mean under the posterior Beta(1/2 + right, 1/2 + wrong), so that unknown starts are tried too.

Every decision is a function of what is in the run directory, as in `budget`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heapreplace

from gpo.experiment.starts import Known
from gpo.rollout.turns import in_turns
from gpo.statistics import STRATA, binned
from gpo.types import Group, Trajectory


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


def expected_variance(right: float, count: int) -> float:
    """The mean of p (1 - p) under the posterior Beta(1/2 + right, 1/2 + wrong), at most 1/4."""
    a, b = right + 0.5, count - right + 0.5
    return a * b / ((a + b) * (a + b + 1))


def by_worth(
    starts: Sequence[int], n: int, length: Callable[[int], float], known: Callable[[int], Known]
) -> Iterator[tuple[int, int]]:
    """The starts, by number, in the order in which they have their turns of n rollouts, the same one as often as due.

    Args:
        length: expected tokens of a rollout from a start.
        known: outcomes of the rollouts that there are already; those that are trained on count as had.
    """
    # D'Hondt: the next n rollouts go where weight / (rollouts with them) is largest; the first of equals.
    of_start = [known(start) for start in starts]
    worth = [expected_variance(each.right, each.graded) for each in of_start]
    weights = [of / length(start) for of, start in zip(worth, starts, strict=True)]
    counts = [each.sampled for each in of_start]
    heap = [(-weight / (count + n), i) for i, (weight, count) in enumerate(zip(weights, counts, strict=True))]
    heapify(heap)
    while heap:
        i = heap[0][1]
        yield starts[i], n
        counts[i] += n
        heapreplace(heap, (-weights[i] / (counts[i] + n), i))


def tokens_for_resets(
    resets: Sequence[int],
    questions: Sequence[int],
    length: Callable[[int], float],
    known: Callable[[int], Known],
    *,
    left: int,
    n: int,
    at_most: int,
) -> int:
    """How many of the tokens that are left go to reset starts if all starts are apportioned together."""
    inside = set(resets)
    wanted, spent = 0.0, 0.0
    for start, rollouts in by_worth([*resets, *questions], n, length, known):
        cost = rollouts * length(start)
        spent += cost
        if spent > left:
            break
        wanted += cost * (start in inside)
    return max(0, min(at_most, round(wanted)))
