"""The resets of a round: rollouts from the critical prefixes, and from the questions with what these leave."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from gpo.estimators.none import NoReset
from gpo.experiment.allocation import by_worth, tokens_for_resets
from gpo.experiment.budget import next_chunk, reset_starts, round_robin
from gpo.experiment.resources import Resources
from gpo.experiment.search import by_stratum
from gpo.experiment.starts import Starts
from gpo.storage.chunks import Chunks
from gpo.storage.rounds import RoundState
from gpo.types import Group, Stage, Start, tokens_of

# Given the numbers of starts: what is due, given how many groups there are from these; starts and their rollouts.
Turns = Callable[[Sequence[int]], Callable[[int], Iterator[tuple[int, int]]]]
log = logging.getLogger(__name__)


def reset(work: Resources, state: RoundState) -> None:
    """Rollouts from the reset boundaries, in turns, until the arm's budget is spent.

    An arm whose estimator resets nowhere spends its budget on the questions, as every arm does with what
    `reset_fraction` and `reset_turns` leave.
    """
    found = work.files.searched(state.arm, state.number)
    first, spent, searched = state.rollouts.read(), state.tokens(), state.searched()
    questions = [group.start for group in first]
    starts = reset_starts([score for _, score in found], [trajectory for trajectory, _ in found]) or questions
    estimator = work.estimator(state.arm, state.checkpoint)
    if found and not isinstance(estimator, NoReset) and not any(start.prefix_ids for start in starts):
        message = "Every step that %s found is the first one: its resets are the questions again, as in plain sampling."
        log.warning(message, state.label)
    even = isinstance(estimator, NoReset) and estimator.order == "even"
    if even and {start.key for start in starts} <= {start.key for start in questions}:
        starts = questions  # as they come, and not with mixed outcomes first, as they are looked at
    budget = work.allowance(state)
    left = budget - spent[Stage.ROLLOUT] - spent[Stage.LOCATE]
    at_most = min(left, round(work.config.reset_fraction * budget))
    n = work.config.reset_rollouts
    stratum = by_stratum(work, state.arm, estimator)
    if stratum:
        starts = [start for start in starts if start.prefix_ids]
    seen, had = Starts([*starts, *questions]), Counter[int]()
    for group in first:
        seen.add(group)
    for group in searched:
        number = seen.add(group, trained=bool(work.config.reuse))
        had[number] += sum(t.score.value is not None for t in group.trajectories)

    def worth(numbers: Sequence[int]) -> Callable[[int], Iterator[tuple[int, int]]]:
        return lambda done: by_worth(numbers, n, seen.length, seen.known)

    def by_turns(had: Mapping[int, int], turns: int) -> Turns:
        return lambda numbers: round_robin(numbers, n, had=had, turns=turns)

    resets: Turns
    fresh: Turns
    if stratum:
        at_most = min(at_most, round((1 - work.config.fresh_least) * budget) - spent[Stage.LOCATE])
        inside, asked = ([seen.number(start) for start in several] for several in (starts, questions))
        at_most = tokens_for_resets(inside, asked, seen.length, seen.known, left=left, n=n, at_most=at_most)
        more, resets, fresh = True, worth, worth
    else:
        # What the search sampled from a reset start is trained on, so that the start needs less.
        turns = work.config.reset_turns or 0 if any(start.prefix_ids for start in starts) else 0
        more = work.config.reset_fraction < 1 or turns > 0
        resets, fresh = by_turns(had if work.config.reuse else {}, turns), by_turns({}, 0)
    left -= fill(work, state, Stage.RESET, state.resets, starts, at_most, seen, resets)
    if more:
        fill(work, state, Stage.MORE, state.more, questions, left, seen, fresh)


def fill(
    work: Resources,
    state: RoundState,
    stage: Stage,
    file: Chunks[Group],
    starts: Sequence[Start],
    budget: int,
    seen: Starts,
    turns: Turns,
) -> int:
    """Rollouts from these starts, in the order of their turns, until the tokens of a budget are spent; what they took.

    Args:
        seen: what is known of the starts; what is sampled is added.
    """
    most = max(1, work.config.chunk // work.config.reset_rollouts)
    numbers = [seen.number(start) for start in starts]
    by_number = dict(zip(numbers, starts, strict=True))
    groups: Counter[int] = Counter()  # of each start
    empty: set[int] = set()  # starts that nothing is sampled from
    due, new = turns(numbers), file.read()
    began, done, spent = len(new), 0, 0
    while True:
        empty_before = len(empty)
        for group in new:
            number, tokens = seen.add(group), tokens_of([group])
            groups[number] += 1
            done, spent = done + 1, spent + tokens
            if not tokens:
                empty.add(number)
        if len(empty) > empty_before:
            due = turns([number for number in numbers if number not in empty])
        left = budget - spent
        batch, n = next_chunk(due(done - sum(map(groups.__getitem__, empty))), seen.length, left=left, most=most)
        if not batch:
            break
        expected = round(sum(n * seen.length(number) for number in batch))
        with work.piece(Stage.RESET, state.label, spent, budget, "tokens", expected) as report:
            sampler = work.sampler(stage, "train", done, state.checkpoint, state.number, state.arm)
            new = file.append(sampler([by_number[number] for number in batch], n))
            report(min(spent + sampler.tokens, budget), budget, "tokens", sampler.tokens)
    if done > began:
        work.teller.step(Stage.RESET, state.label, budget, budget, "tokens")
    return spent
