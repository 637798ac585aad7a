"""What each step is worth, from all rollouts that took it.

The responses sampled from one prompt are a tree: a node is a prefix that ends where a step ends, an edge a step. Every
rollout is a fair sample of the value of the node that it starts from and, given that it got there, of every node that
it passes behind it; so

    V(s) = mean score of the rollouts that start at s or pass it,   A(s, a) = V(child of s by a) - V(s)

and the advantages along a response sum to R - V(root), since the value of a finished response is its score. (VinePPO,
arXiv 2410.01679, and SPO, arXiv 2505.23564, estimate the same quantity with rollouts of its own for each step; TreeRL,
arXiv 2506.11902, from a tree that it samples. Here the tree is what search, resets and plain sampling have left.)

A node that few rollouts passed says little. Its value is shrunk towards that of the node before it, as if `strength`
more rollouts had had that value: V(child) = (sum of scores + strength V(s)) / (count + strength). Assumption: rollouts
are not selected by their score. A search that looks at wrong trajectories first selects: `docs/methods.md` tells what
that does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from scipy.stats import beta as beta_distribution

from gpo.contracts import Tokenizer
from gpo.types import Group, Trajectory

Wording = Callable[[tuple[int, ...]], Hashable]  # what of a step's tokens tells it from others


def as_written(step: tuple[int, ...]) -> Hashable:
    """Steps are one if their tokens are."""
    return step


def as_meant(meaning: Callable[[str], Hashable] | None, tokenizer: Tokenizer) -> Wording:
    """Steps are one if they mean the same, and both end the response or neither does; without `meaning`, `as_written`.

    What ends a response is a special token, which has no text.
    """
    if meaning is None:
        return as_written

    @cache
    def wording(step: tuple[int, ...]) -> Hashable:
        ends = not tokenizer.decode(step[-1:], skip_special_tokens=True)
        return ends, meaning(tokenizer.decode(step, skip_special_tokens=True))

    return wording


@dataclass(eq=False)
class Node:
    """A prefix of responses, and the rollouts that start at it or pass it."""

    parent: Node | None
    step: tuple[int, ...]  # tokens that lead here from the parent, in the wording that was seen first
    depth: int  # steps from the question
    total: float = 0.0  # score of the rollouts
    count: int = 0
    final: bool = False  # a response ends here
    starts: bool = False  # rollouts were sampled from here
    children: dict[Hashable, Node] = field(default_factory=dict)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """(R,) the tokens of the prefix."""
        parts: list[tuple[int, ...]] = []
        node: Node = self
        while node.parent is not None:
            parts.append(node.step)
            node = node.parent
        return tuple(token for part in reversed(parts) for token in part)

    def value(self, strength: float, before: float | None) -> float:
        """Success probability behind this prefix, shrunk towards that of the one before (None at the question)."""
        if self.count and (self.final or before is None):
            return self.total / self.count
        if before is None:
            return 0.5
        return (self.total + strength * before) / (self.count + strength) if self.count + strength else before


class StepTree:
    """The tree of one prompt."""

    def __init__(self, problem_id: str, prompt_ids: tuple[int, ...], wording: Wording = as_written) -> None:
        self.problem_id = problem_id
        self.prompt_ids = prompt_ids
        self.wording = wording
        self.root = Node(None, (), 0)

    def add(self, trajectory: Trajectory) -> None:
        """Take a rollout into every node that it tells of; one whose grade failed tells nothing."""
        if trajectory.score.value is None:
            return
        kept = len(trajectory.start.prefix_ids)
        nodes = self.path(trajectory)
        for end, node in nodes.items():
            node.starts |= end == kept
            if end >= kept:
                node.total += trajectory.score.value
                node.count += 1
        if trajectory.completion.finish_reason == "stop":
            nodes[len(trajectory.response_ids)].final = True

    def path(self, trajectory: Trajectory) -> dict[int, Node]:
        """The nodes of a response by token offset, made where they are not there: its boundaries, and its start."""
        node = self.root
        nodes = {0: node}
        # A segmenter may not cut where a prefix was kept; what was sampled begins there all the same.
        places = sorted({*trajectory.boundaries, len(trajectory.start.prefix_ids)})
        for begin, end in pairwise(places):
            step = trajectory.response_ids[begin:end]
            key = self.wording(step)
            if key not in node.children:
                node.children[key] = Node(node, step, node.depth + 1)
            node = nodes[end] = node.children[key]
        return nodes

    def advantages(self, trajectory: Trajectory, strength: float) -> tuple[float, ...]:
        """(K,) A(s, a) of the steps of a response that was added."""
        values = values_along(self.path(trajectory), strength)
        ends = pairwise(trajectory.boundaries)
        return tuple(values[after] - values[before] for before, after in ends)

    def nodes(self) -> Iterator[Node]:
        """All nodes, each before its children."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children.values()))


def values_along(nodes: Mapping[int, Node], strength: float) -> dict[int, float]:
    """Values of the nodes of one response, from the question on, by token offset."""
    values: dict[int, float] = {}
    before: float | None = None
    for end, node in nodes.items():
        before = values[end] = node.value(strength, before)
    return values


def grow(groups: Iterable[Group], wording: Wording = as_written) -> dict[tuple[str, tuple[int, ...]], StepTree]:
    """The tree of each prompt, by problem and prompt tokens."""
    trees: dict[tuple[str, tuple[int, ...]], StepTree] = {}
    for group in groups:
        key = (group.start.problem_id, group.start.prompt_ids)
        tree = trees.setdefault(key, StepTree(*key, wording))
        for trajectory in group.trajectories:
            tree.add(trajectory)
    return trees


@dataclass(frozen=True)
class Preference:
    """Two steps behind one prefix, of which one is better with probability `certainty`."""

    node: Node
    better: Node
    worse: Node
    certainty: float
    gain: float  # value behind the better step minus that behind the worse


def preferences(
    tree: StepTree, *, strength: float, certainty: float, starts_only: bool, most: int
) -> list[list[Preference]]:
    """For each prefix that two kinds of step have left, its surest pairs first; each step is in as few as can be.

    Given the scores behind them the values of two steps are Beta distributed, with `strength` rollouts of the prefix's
    own value as the prior; a pair counts if P(better > worse) is at least `certainty`.

    Args:
        most: of each prefix.
        starts_only: only prefixes that rollouts were sampled from, the question among them.
    """
    found = []
    values: dict[int, float] = {}
    for node in tree.nodes():
        value = values[id(node)] = node.value(strength, None if node.parent is None else values[id(node.parent)])
        steps = [child for child in node.children.values() if child.count]
        if len(steps) < 2 or (starts_only and not node.starts):
            continue
        pairs = [
            pair for better in steps for worse in steps if (pair := _compare(node, better, worse, value, strength))
        ]
        pairs = [pair for pair in pairs if pair.certainty >= certainty]
        if pairs:
            found.append(_spread(pairs, most))
    return found


def _compare(node: Node, better: Node, worse: Node, value: float, strength: float) -> Preference | None:
    high, low = ((child.total + strength * value) / (child.count + strength) for child in (better, worse))
    if high <= low:
        return None
    sure = probability_of_more(_counts(better, value, strength), _counts(worse, value, strength))
    return Preference(node, better, worse, sure, high - low)


def _counts(child: Node, value: float, strength: float) -> tuple[float, float]:
    """Parameters of the Beta distribution of the value behind a step; half a rollout each way keeps it proper."""
    return child.total + strength * value + 0.5, child.count - child.total + strength * (1 - value) + 0.5


def probability_of_more(first: tuple[float, float], second: tuple[float, float], points: int = 64) -> float:
    """P(X > Y) of independent X ~ Beta(*first) and Y ~ Beta(*second), by the midpoints of Y's quantiles."""
    quantiles = [(i + 0.5) / points for i in range(points)]
    places = beta_distribution.ppf(quantiles, *second)
    return float(beta_distribution.sf(places, *first).mean())


def _spread(pairs: Sequence[Preference], most: int) -> list[Preference]:
    """At most so many: the surest first, then always the surest of those whose steps are in the fewest pairs."""
    used: dict[int, int] = {}
    left = sorted(pairs, key=lambda pair: -pair.certainty)
    ordered: list[Preference] = []
    while left and len(ordered) < most:
        best = min(left, key=lambda pair: used.get(id(pair.better), 0) + used.get(id(pair.worse), 0))
        left.remove(best)
        ordered.append(best)
        for child in (best.better, best.worse):
            used[id(child)] = used.get(id(child), 0) + 1
    return ordered
