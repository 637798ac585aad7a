"""Trajectories as the online methods train on them. T: trained tokens of one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from gpo.errors import DataError
from gpo.types import Group, Start, StartKey


@dataclass(eq=False)
class TrainingRow:
    """One trajectory. Tensors are on the CPU."""

    context: tuple[int, ...]  # carries no loss
    tokens: tuple[int, ...]  # (T,) carry loss
    reward: float
    group: int  # rows of the same start have the same number
    start: Start
    old: Tensor | None  # (T,) behaviour log-probabilities, nats
    reference: Tensor | None = None  # (T,)
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))  # (T,)
    values: Tensor = field(default_factory=lambda: torch.zeros(0))  # (T,) of the critic, before each token
    returns: Tensor = field(default_factory=lambda: torch.zeros(0))  # (T,)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.context + self.tokens


def group_by_start(groups: Sequence[Group], *, train_prefix: bool) -> list[TrainingRow]:
    """The rows of all graded, non-empty trajectories; a prefix that is trained on has no behaviour log-probabilities.

    Raises:
        DataError: a start without a prompt, so that nothing predicts its first token.
    """
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
            old = None if trained or logps is None else torch.tensor(logps)
            rows.append(TrainingRow(context, trained + ids, trajectory.score.value, number, start, old))
    return rows


def joined(rows: Sequence[TrainingRow], name: str, like: Tensor) -> Tensor:
    """(S,) a field of all rows, one after the other, on the device and of the type of `like`."""
    return torch.cat([getattr(row, name) for row in rows]).to(like)


def by_group(rows: Sequence[TrainingRow]) -> list[list[TrainingRow]]:
    """The rows of each start."""
    ordered = sorted(rows, key=lambda row: row.group)
    return [list(siblings) for _, siblings in groupby(ordered, key=lambda row: row.group)]
