"""Where success is lost: kinds of step by what they cost, and how far a search was off.

The advantages of a trajectory sum to R - V_0, so that along a wrong one the success that the model had at the question
is lost step by step. Of question q with the share w_q of wrong rollouts, a kind of step costs

    loss(q, kind) = w_q * mean over its searched wrong trajectories of the sum of -A_k over the steps of that kind

and without this error (its steps leave the value where it was, all else the same) accuracy on q rises by that much. The
sum takes every step, so that no maximum of noisy values is in it. A ranking would bring one back: kinds are therefore
ranked on one half of the questions, and what they cost is measured on the other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import fmean

from gpo.report.kinds import JOINED, Kinds
from gpo.report.reading import Reading, Searched
from gpo.statistics import Interval, paired_difference

RANKED = 15  # kinds in a table
FEWEST = 2  # questions in the measured half that show a kind


@dataclass(frozen=True, slots=True)
class KindLoss:
    """What a kind of step costs, in accuracy on the measured half of the searched questions."""

    kind: str
    example: str
    ranked_by: float  # its loss on the other half
    loss: Interval
    questions: int  # of the measured half in whose wrong trajectories it occurs


@dataclass(frozen=True, slots=True)
class Losses:
    """The ranking, and how much there is to lose at all."""

    kinds: tuple[KindLoss, ...]  # the costliest first, by the half that ranks
    questions: int  # in the measured half
    accuracy: float  # of the first rollouts on the measured half; NaN without questions
    lost: float  # by all steps together: wrong answers to questions that the model could still have got right


def rank_losses(reading: Reading, kinds: Kinds, most: int = RANKED) -> Losses:
    """Kinds of step that lose success on one half of the questions, with what they cost on the other.

    A question that the round has not asked, whose trajectory is one of the buffer, has no accuracy to lose.
    """
    by_question: dict[str, list[Searched]] = defaultdict(list)
    for item in reading.searched:
        if item.blocks and reading.success(item.problem.id):
            by_question[item.problem.id].append(item)
    usable = {
        name: items
        for name, items in by_question.items()
        # Where all rollouts were right there is nothing to lose.
        if min(reading.success(name)) == 1 or any(not item.trajectory.score.right for item in items)
    }
    losses = {name: question_losses(items, reading.success(name), kinds) for name, items in usable.items()}
    examples = {
        kind: text
        for items in usable.values()
        for item in items
        if not item.trajectory.score.right
        for kind, _, text in step_losses(item, kinds)
    }
    ranking, measured = halves([items[0] for items in usable.values()])
    # There may be about as many kinds as steps: nothing goes through all questions for each of them.
    of_kind: dict[str, list[float]] = defaultdict(list)
    for name in ranking:
        for kind, loss in losses[name].items():
            of_kind[kind].append(loss)
    by_rank = {kind: fsum(costs) / len(ranking) for kind, costs in of_kind.items()}
    seen = Counter(kind for name in measured for kind in losses[name])
    often = [kind for kind in examples if by_rank.get(kind, 0.0) > 0 and seen[kind] >= FEWEST]
    found: list[KindLoss] = []
    for kind in sorted(often, key=lambda kind: -by_rank[kind])[: min(most, RANKED)]:
        costs = [[losses[name].get(kind, 0.0)] for name in measured]
        interval = paired_difference([[0.0]] * len(costs), costs)
        found.append(KindLoss(kind, examples[kind], by_rank[kind], interval, seen[kind]))
    return Losses(
        tuple(found),
        len(measured),
        _mean(fmean(reading.success(name)) for name in measured),
        _mean(sum(losses[name].values()) for name in measured),
    )


def question_losses(items: Sequence[Searched], rewards: Sequence[float], kinds: Kinds) -> dict[str, float]:
    """loss(q, kind) of one question."""
    wrong = [item for item in items if not item.trajectory.score.right and item.trajectory.score.value is not None]
    totals: dict[str, float] = defaultdict(float)
    for item in wrong:
        for kind, loss, _ in step_losses(item, kinds):
            totals[kind] += loss
    share = 1 - fmean(rewards) if rewards else 0.0
    return {kind: share * total / len(wrong) for kind, total in totals.items()}


def step_losses(item: Searched, kinds: Kinds) -> list[tuple[str, float, str]]:
    """Kind, loss of value and text of each block of a trajectory between known values; the losses sum to V_0 - R."""
    found = []
    for begin, end in item.blocks:
        assert item.scores is not None
        loss = item.scores.values[begin] - item.scores.values[end]
        text = item.steps[begin]
        found.append((kinds(text) if end == begin + 1 else JOINED, loss, text))
    return found


def halves(items: Iterable[Searched]) -> tuple[list[str], list[str]]:
    """Problem ids for ranking and for measuring, every other question of each sub-task."""
    turns: Counter[str] = Counter()
    parts: tuple[list[str], list[str]] = ([], [])
    for item in items:
        name = item.problem.subtask
        parts[turns[name] % 2].append(item.problem.id)
        turns[name] += 1
    return parts


@dataclass(frozen=True, slots=True)
class Honesty:
    """The value before the critical step by the search that chose it, and by rollouts sampled afterwards."""

    searched: float  # mean over trajectories; NaN without any
    fresh: Interval  # mean over the same trajectories, with its interval over questions
    difference: Interval  # fresh minus searched, paired
    trajectories: int


def check_choice(searched: Sequence[Searched]) -> Honesty:
    """How far the search's value before the critical step is from that of fresh rollouts."""
    by_question: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item in searched:
        if item.critical is not None and item.scores is not None and item.fresh_value(item.critical).n:
            pair = (item.scores.values[item.critical], item.fresh_value(item.critical).estimate)
            by_question[item.problem.id].append(pair)
    old = [[pair[0] for pair in pairs] for pairs in by_question.values()]
    new = [[pair[1] for pair in pairs] for pairs in by_question.values()]
    zero = [[0.0] for _ in new]
    return Honesty(
        _mean(fmean(row) for row in old), paired_difference(zero, new), paired_difference(old, new), sum(map(len, old))
    )


def _mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    found = list(values)
    return fmean(found) if found else float("nan")
