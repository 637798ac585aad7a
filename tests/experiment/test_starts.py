"""What is sampled next, chunk by chunk, is what looking at everything anew would say."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from gpo.experiment.allocation import by_worth, expected_variance
from gpo.experiment.budget import round_robin
from gpo.experiment.resets import Turns, fill
from gpo.experiment.starts import Starts
from gpo.storage.chunks import Chunks
from gpo.types import Completion, Group, Score, Stage, Start, StartKey, Trajectory, tokens_of

N, MOST = 4, 3  # rollouts of a turn, starts of a chunk
Plan = tuple[list[Start], int]


def sampled(start: Start, n: int, random: Random, name: str) -> Group:
    """Some starts leave no room to answer, some answers no grade; scores are partial."""
    lengths = [random.randint(1, 30) for _ in range(n)] if random.random() > 0.15 else []
    scores = [random.choice([0.0, 0.1, 0.7, 1.0, None]) for _ in lengths]
    return Group(
        start,
        tuple(
            Trajectory(
                f"{name}:{i}",
                start,
                Completion((9,) * length, "", "stop"),
                Score(score, "failed" if score is None else "right"),
                (len(start.prefix_ids) + length,),
            )
            for i, (length, score) in enumerate(zip(lengths, scores, strict=True))
        ),
    )


def situation(random: Random) -> tuple[list[Start], list[Group], list[Group]]:
    """Starts, first rollouts and rollouts of a search, of which some are from these starts."""
    first = [sampled(Start(f"p{i}", (1, i)), N, random, f"first{i}") for i in range(8)]
    parents = [trajectory for group in first for trajectory in group.trajectories]
    starts = [Start(t.start.problem_id, t.start.prompt_ids, t.response_ids[:3], t.id) for t in parents[::2]]
    starts += [Start("old", (1,), (7,) * k, "of a round before") for k in range(1, 4)] + [first[0].start]
    searched = [sampled(start, random.randint(0, N + 2), random, f"search{i}") for i, start in enumerate(starts[::3])]
    return list({start.key: start for start in starts}.values()), first, searched


def anew(
    starts: Sequence[Start], n: int, groups: Sequence[Group], known: Sequence[Group], left: int, order: str,
    untrained: Sequence[Group], had: dict[StartKey, int], turns: int,
) -> Plan:  # fmt: skip
    """The next chunk by all that there is, with starts told apart by their tokens."""
    empty = {group.start.key for group in groups if not tokens_of([group])}
    usable = [start for start in starts if start.key not in empty]
    groups_left = [group for group in groups if group.start.key not in empty]
    everything = [*known, *groups]
    parents = {t.id: t for group in everything for t in group.trajectories}
    lengths = {}
    every = [len(t.completion.token_ids) for group in everything for t in group.trajectories]
    for start in usable:
        own = [len(t.completion.token_ids) for g in everything if g.start.key == start.key for t in g.trajectories]
        behind = [len(parents[start.parent].response_ids) - len(start.prefix_ids)] if start.parent in parents else []
        lengths[start.key] = (
            sum(own) / len(own) if own else float(max(1, behind[0])) if behind else sum(every) / len(every)
        )
    due: Iterator[tuple[Start, int]]
    if order == "worth":
        trained = [group for group in known if group not in untrained]
        weights, counts = [], []
        for start in usable:
            right, graded, had_already = 0.0, 0, 0
            for several, taught in (([*trained, *groups_left], True), (untrained, False)):
                for group in (group for group in several if group.start.key == start.key):
                    values = [t.score.value for t in group.trajectories if t.score.value is not None]
                    right, graded = right + sum(values), graded + len(values)
                    had_already += len(group.trajectories) * taught
            weights.append(expected_variance(right, graded) / lengths[start.key])
            counts.append(had_already)

        def by_weight() -> Iterator[tuple[Start, int]]:
            while usable:
                best = max(range(len(usable)), key=lambda i: (weights[i] / (counts[i] + n), -i))
                yield usable[best], n
                counts[best] += n

        due = by_weight()
    else:
        missing = {start.key: n - had.get(start.key, 0) for start in usable}
        first = sorted((s for s in usable if missing[s.key] > 0), key=lambda s: -missing[s.key])
        later = ((start, n) for _ in (range(turns - 1) if turns else count()) for start in usable)
        due = chain(((start, missing[start.key]) for start in first), later if usable else ())
        due = islice(due, len(groups_left), None)
    chosen: list[Start] = []
    cost, each = 0.0, 0
    for start, wanted in due:
        each = each or wanted
        cost += wanted * lengths[start.key]
        if wanted != each or len(chosen) == MOST or cost > (0.8 * left if chosen else left):
            if not chosen and (affordable := round(left / lengths[start.key])) > 0:
                return [start], min(each, affordable)
            break
        chosen.append(start)
    return chosen, each


class Work:
    """What `fill` needs of a run, and what it asked for."""

    def __init__(self, rollouts: Callable[[int, Start, int], Group], chunks: int) -> None:
        self.config = SimpleNamespace(chunk=MOST * N, reset_rollouts=N)
        self.teller = SimpleNamespace(step=lambda *about: None)
        self.asked: list[Plan] = []
        self.rollouts, self.chunks = rollouts, chunks

    @contextmanager
    def piece(self, *about: Any) -> Iterator[Callable[..., None]]:
        yield lambda *about: None

    def sampler(self, stage: Stage, split: str, first: int, *about: Any) -> Any:
        def sample(starts: list[Start], n: int) -> list[Group]:
            if len(self.asked) == self.chunks:
                raise KeyboardInterrupt
            self.asked.append((starts, n))
            return [self.rollouts(first + i, start, n) for i, start in enumerate(starts)]

        sample.tokens = 0  # type: ignore[attr-defined]
        return sample


@pytest.mark.parametrize("order", ["turns", "two turns", "worth"])
@pytest.mark.parametrize("seed", range(12))
def test_starts_get_their_rollouts_in_the_order_that_everything_so_far_says(
    tmp_path: Path, seed: int, order: str
) -> None:
    starts, first, searched = situation(Random(seed))
    trained = order != "worth" or seed % 2 == 0
    had = Counter[StartKey]()
    for group in searched if trained else ():
        had[group.start.key] += sum(t.score.value is not None for t in group.trajectories)
    turns = 2 * (order == "two turns")

    def rollouts(row: int, start: Start, n: int) -> Group:
        return sampled(start, n, Random(f"{seed} {row}"), f"reset{row}")

    def run(chunks: int) -> list[Plan]:
        seen = Starts(starts)
        for group in first:
            seen.add(group)
        for group in searched:
            seen.add(group, trained=trained)
        known = {seen.number(start): had[start.key] for start in starts}
        due: Turns = lambda numbers: round_robin(numbers, N, had=known, turns=turns)  # noqa: E731
        if order == "worth":
            due = lambda numbers: lambda done: by_worth(numbers, N, seen.length, seen.known)  # noqa: E731
        work: Any = Work(rollouts, chunks)
        state: Any = SimpleNamespace(label="gpo", checkpoint=None, number=1, arm="gpo")
        file = Chunks(tmp_path / "resets.jsonl", Group)
        try:
            assert fill(work, state, Stage.RESET, file, starts, 3000, seen, due) == tokens_of(file.read())
        except KeyboardInterrupt:
            assert len(work.asked) == chunks
        return work.asked

    found = [*run(5), *run(1000)]  # the second one goes on where the first was killed
    groups: list[Group] = []
    for starts_of_chunk, n in found:
        plan = anew(
            starts, N, groups, [*first, *searched], 3000 - tokens_of(groups), order,
            () if trained else searched, had, turns,
        )  # fmt: skip
        assert (starts_of_chunk, n) == plan
        groups += [rollouts(len(groups) + i, start, n) for i, start in enumerate(starts_of_chunk)]
    left = 3000 - tokens_of(groups)
    rest = anew(starts, N, groups, [*first, *searched], left, order, () if trained else searched, had, turns)
    assert not rest[0]
    assert len(found) > 4
    assert len({start.key for chunk, _ in found for start in chunk}) > 3
