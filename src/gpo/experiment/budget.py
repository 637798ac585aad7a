"""What the stages of a run decide: which trajectories to search, where to reset next.

Every decision is a function of what is in the run directory, so that a run that was killed decides the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, takewhile

from gpo.rollout.turns import in_turns
from gpo.types import Group, Start, StartKey, StepScores, Trajectory

SEARCH_MOST = 2 / 3  # of what the first rollouts leave of a round, for the search
MANY = 0.2  # of rollouts that were cut off, for a warning
SAFE_SHARE = 0.8  # of the tokens left, for a chunk of resets


def allowance(first: int, factor: float, number: int, spent: int) -> int:
    """Tokens that an arm may sample in round `number`: as many as in the first, plus what earlier ones left.

    Args:
        first: tokens of the first rollouts.
        factor: the budget of a round as a multiple of these.
        spent: tokens of the arm in all rounds before.
    """
    return number * round(factor * first) - spent


def to_search(groups: Sequence[Group], per_problem: int) -> list[Trajectory]:
    """The trajectories to search, most promising first, at most `per_problem` of each problem.

    Problems with right and wrong trajectories come before those always wrong, and these before those always right: a
    step can only be critical where the outcome is open. Within a problem wrong trajectories come first. Problems take
    turns. A trajectory whose grade failed is left out.
    """
    ranked: list[list[list[Trajectory]]] = [[], [], []]
    for group in groups:
        graded = [trajectory for trajectory in group.trajectories if trajectory.score.value is not None]
        right = [trajectory for trajectory in graded if trajectory.score.right]
        wrong = [trajectory for trajectory in graded if not trajectory.score.right]
        rank = 0 if right and wrong else 1 if wrong else 2
        ranked[rank].append([*wrong, *right][:per_problem])
    return [trajectory for rows in ranked for trajectory in in_turns(rows)]


def search_limit(budget: float, first: float, share: float) -> int:
    """Tokens that the search of a round may take: a share of the budget, and not so much that resets go short.

    Args:
        budget: tokens of the round.
        first: of its first rollouts, which take more or less of it as responses change in training.
    """
    return round(min(share * budget, SEARCH_MOST * max(0, budget - first)))


def search_weight(trajectory: Trajectory) -> int:
    """What one rollout from every boundary of a trajectory takes, in tokens, if all ended where it did."""
    length = len(trajectory.start.prefix_ids) + len(trajectory.completion.token_ids)
    return sum(length - boundary for boundary in trajectory.boundaries[:-1]) or 1


def next_searches(
    candidates: Sequence[Trajectory], *, weight: int, spent: int, left: int, first: int, most: int
) -> Sequence[Trajectory]:
    """The trajectories of the next chunk of a search, the first ones that fit; none once what is left pays for none.

    What a search takes is foretold from what the trajectories searched so far took for each unit of their weight, and
    a chunk is planned to take no more than half of what is left: searches differ, and the first few tell little.

    Args:
        candidates: trajectories not yet searched.
        weight: sum of `search_weight` over those searched.
        spent: tokens that these took.
        left: tokens that the search may still take.
        first: size of the first chunk.
        most: size of a chunk at most.
    """
    if not weight:
        return candidates[:first]
    chosen: list[Trajectory] = []
    cost = 0.0
    for trajectory in candidates:
        if len(chosen) == most:
            break
        more = cost + search_weight(trajectory) * spent / weight
        if more <= (left / 2 if chosen else left):
            chosen.append(trajectory)
            cost = more
    return chosen


def reset_starts(scores: Iterable[StepScores], trajectories: Iterable[Trajectory]) -> list[Start]:
    """The distinct prefixes that an estimator resets to, in the order of `scores`."""
    by_id = {trajectory.id: trajectory for trajectory in trajectories}
    starts: dict[StartKey, Start] = {}
    for score in scores:
        if score.reset_boundary is not None:
            start = by_id[score.trajectory_id].prefix(score.reset_boundary)
            starts.setdefault(start.key, start)
    return list(starts.values())


def round_robin(
    starts: Sequence[int], n: int, *, had: Mapping[int, int] | None = None, turns: int = 0
) -> Callable[[int], Iterator[tuple[int, int]]]:
    """Starts, by number, and their rollouts, in turns of `n` each; those that come when there were so many turns.

    In the first turn the rollouts that a start `had` count: it gets what is missing to `n`, those that miss most come
    first, and one that misses none is passed over.

    Args:
        had: rollouts of each start that there are already, such as those of a search.
        turns: of each start, at most; 0: no limit.
    """
    had = had or {}
    missing = {start: n - had.get(start, 0) for start in starts}
    first = sorted((start for start in starts if missing[start] > 0), key=lambda start: -missing[start])
    last = len(first) + (turns - 1) * len(starts) if turns or not starts else None

    def due(done: int) -> Iterator[tuple[int, int]]:
        for turn in takewhile(lambda turn: last is None or turn < last, count(done)):
            later = turn - len(first)
            yield (first[turn], missing[first[turn]]) if later < 0 else (starts[later % len(starts)], n)

    return due


def next_chunk(
    turns: Iterable[tuple[int, int]], length: Callable[[int], float], *, left: int, most: int
) -> tuple[list[int], int]:
    """The starts of the next chunk and the rollouts of each; no starts once `left` tokens are spent to within half one.

    Lengths are expectations, so a chunk is planned to take no more than SAFE_SHARE of what is left; then one start at a
    time, and the last one gets as many rollouts as what is left pays for. So an arm misses its budget by a few rollouts
    at most.

    Args:
        turns: starts, by number, and their rollouts in order; a chunk ends where the number of rollouts changes.
        length: expected tokens of a rollout from a start.
        most: starts at most.
    """
    chosen: list[int] = []
    cost, each = 0.0, 0
    for start, n in turns:
        each = each or n
        cost += n * length(start)
        if n != each or len(chosen) == most or cost > (SAFE_SHARE * left if chosen else left):
            if not chosen and (affordable := round(left / length(start))) > 0:
                return [start], min(each, affordable)
            break
        chosen.append(start)
    return chosen, each
