"""Trajectories as the online methods train on them. T: trained tokens of one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from random import Random
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpo.errors import DataError
from gpo.methods.losses import scaled
from gpo.preferences.credit import StepTree, Wording, as_written, grow, values_along
from gpo.types import Credit, Group, Start, StartKey, Trajectory


class StepCredit(NamedTuple):
    """What a sampled step is worth, by all rollouts that took it."""

    size: int  # tokens
    advantage: float  # its value less that of the prefix before it
    value: float  # success probability behind it


@dataclass(eq=False)
class TrainingRow:
    """One trajectory. Tensors are on the CPU."""

    context: tuple[int, ...]  # carries no loss
    tokens: tuple[int, ...]  # (T,) carry loss
    reward: float
    group: int  # rows of the same start have the same number
    start: Start
    sampled: Tensor | None  # (T,) log-probabilities that the engine told, nats
    steps: tuple[StepCredit, ...] = ()  # the tokens, step by step; empty where the score is credit for all of them
    old: Tensor | None = None  # (T,) of the policy before the update; None: as it is in its first step
    reference: Tensor | None = None  # (T,)
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))  # (T,)
    values: Tensor = field(default_factory=lambda: torch.zeros(0))  # (T,) of the critic, before each token
    returns: Tensor = field(default_factory=lambda: torch.zeros(0))  # (T,)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.context + self.tokens

    @property
    def sizes(self) -> list[int]:
        """Tokens of each action: of each step that has credit of its own, else of the completion."""
        return [step.size for step in self.steps] or [len(self.tokens)]


def group_by_start(
    groups: Sequence[Group],
    *,
    train_prefix: bool = False,
    credit: Credit = "tail",
    strength: float = 0.0,
    wording: Wording = as_written,
) -> list[TrainingRow]:
    """The rows of all graded, non-empty trajectories; the engine told nothing of a prefix that is trained on.

    With `step` credit a row ends with the first step behind its start: what is behind that carries no loss.

    Args:
        strength: rollouts that a prefix's own value counts as in the value of what follows it.
        wording: which steps are one for credit.

    Raises:
        DataError: a start without a prompt, so that nothing predicts its first token.
    """
    trees = {} if credit == "tail" else grow(groups, wording)
    numbers: dict[StartKey, int] = {}
    rows = []
    for group in groups:
        start = group.start
        number = numbers.setdefault(start.key, len(numbers))
        if not start.prompt_ids:
            raise DataError(f"Problem {start.problem_id!r} has an empty prompt. Give it at least one token.")
        trained = start.prefix_ids if train_prefix else ()
        context = start.prompt_ids if train_prefix else start.token_ids
        for trajectory in group.trajectories:
            ids, logps = trajectory.completion.token_ids, trajectory.completion.logprobs
            if trajectory.score.value is None or not ids:
                continue
            told = None if trained or logps is None else torch.tensor(logps)
            row = TrainingRow(context, trained + ids, trajectory.score.value, number, start, told)
            if credit != "tail":
                row.steps = _steps(trajectory, trees[start.problem_id, start.prompt_ids], strength)
            if credit == "step":
                row.steps = row.steps[:1]
                row.tokens = row.tokens[: row.steps[0].size]
                row.sampled = None if row.sampled is None else row.sampled[: row.steps[0].size]
            rows.append(row)
    return rows


def _steps(trajectory: Trajectory, tree: StepTree, strength: float) -> tuple[StepCredit, ...]:
    """The sampled steps; one that the start lies within begins there."""
    values = values_along(tree.path(trajectory), strength)
    ends = [end for end in values if end >= len(trajectory.start.prefix_ids)]
    return tuple(StepCredit(end - begin, values[end] - values[begin], values[end]) for begin, end in pairwise(ends))


def minibatches(rows: Sequence[TrainingRow], epochs: int, count: int, seed: str) -> list[list[TrainingRow]]:
    """The rows of each step: `count` steps of an epoch, or one for each row."""
    random, count = Random(seed), min(count, len(rows))
    orders = [random.sample(rows, len(rows)) for _ in range(epochs)]
    return [order[i::count] for order in orders for i in range(count)]


def part(rows: Sequence[TrainingRow], process: int, processes: int) -> list[TrainingRow]:
    """The rows of one of the processes that share them: of about equal length in all, and alike ones together."""
    if processes == 1:
        return list(rows)
    alike = sorted(rows, key=lambda row: row.ids)
    ends = list(accumulate(len(row.ids) for row in alike))
    # A row belongs to where its middle is.
    middles = [end - len(row.ids) / 2 for row, end in zip(alike, ends, strict=True)]
    return [row for row, middle in zip(alike, middles, strict=True) if int(processes * middle / ends[-1]) == process]


def set_step_advantages(rows: Sequence[TrainingRow], penalties: Sequence[Tensor], *, scale: bool) -> None:
    """Give every token the advantage of its step, less the penalties (T,) of the row's tokens in that step."""
    of_steps = [part.sum() for row, each in zip(rows, penalties, strict=True) for part in torch.split(each, row.sizes)]
    advantages = torch.tensor([step.advantage for row in rows for step in row.steps]) - torch.stack(of_steps)
    sizes = torch.tensor([size for row in rows for size in row.sizes])
    of_tokens = (scaled(advantages) if scale else advantages).repeat_interleave(sizes)
    for row, values in zip(rows, torch.split(of_tokens, [len(row.tokens) for row in rows]), strict=True):
        row.advantages = values


def joined(rows: Sequence[TrainingRow], name: str, like: Tensor) -> Tensor:
    """(S,) a field of all rows, one after the other, on the device and of the type of `like`."""
    return torch.cat([getattr(row, name) for row in rows]).to(like)


def known_or(rows: Sequence[TrainingRow], name: str, stand_in: Tensor) -> Tensor:
    """(S,) as `joined`; rows that do not have the field take their part of `stand_in` (S,)."""
    parts = torch.split(stand_in, [len(row.tokens) for row in rows])
    own = [getattr(row, name) for row in rows]
    return torch.cat([part if known is None else known.to(part) for known, part in zip(own, parts, strict=True)])


def log_ratios(
    rows: Sequence[TrainingRow], logps: Tensor, old: Tensor, ratio_of: Literal["token", "sequence"]
) -> tuple[Tensor, Tensor]:
    """(S,) log of policy / policy before the update, and of that / the sampler: of each token, or of its action."""
    found = (logps - old, old - known_or(rows, "sampled", old))
    if ratio_of == "token":
        return found
    sizes, owners = _actions(rows, logps.device)
    ratio, weight = (each.new_zeros(len(sizes)).index_add(0, owners, each)[owners] for each in found)
    return ratio, weight


def weights_in_mean(
    rows: Sequence[TrainingRow], like: Tensor, counted: int, aggregate: Literal["token", "sequence"]
) -> Tensor:
    """(S,) of each token in a mean over `counted` tokens, or over as many actions whose tokens count alike."""
    sizes, owners = _actions(rows, like.device)
    weights = torch.full_like(like, 1 / counted)
    return weights / sizes[owners] if aggregate == "sequence" else weights


def _actions(rows: Sequence[TrainingRow], device: torch.device) -> tuple[Tensor, Tensor]:
    """(A,) tokens of each action of all rows, and (S,) the action that each token is of."""
    sizes = torch.tensor([size for row in rows for size in row.sizes], device=device)
    return sizes, torch.arange(len(sizes), device=device).repeat_interleave(sizes)


def by_group(rows: Sequence[TrainingRow]) -> list[list[TrainingRow]]:
    """The rows of each start."""
    ordered = sorted(rows, key=lambda row: row.group)
    return [list(siblings) for _, siblings in groupby(ordered, key=lambda row: row.group)]
