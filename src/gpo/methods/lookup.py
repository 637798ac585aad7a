"""What a model says of the rows of an update. The processes that train together share the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gpo.methods.processes import gather, is_sharded
from gpo.methods.rows import TrainingRow, part
from gpo.methods.scoring import Scorer, Scores, scoring
from gpo.methods.tree import PackedBatch, pack


@dataclass(frozen=True)
class Lookup:
    """Asks a model of rows, as much at a time as there may be in memory."""

    accelerator: Accelerator
    max_tokens: int  # of a batch
    temperature: float
    bf16: bool
    hidden: bool  # whether the last hidden states are wanted too

    def batches(
        self, scorer: Scorer, rows: Sequence[TrainingRow]
    ) -> Iterator[tuple[list[TrainingRow], PackedBatch, Scores]]:
        """What the model says of this process's part of the rows.

        Processes that hold shards call the model equally often: a batch without rows is done for the others.
        """
        own = part(rows, self.accelerator.process_index, self.accelerator.num_processes)
        batches = pack([(row.context, row.tokens) for row in own], self.max_tokens, share=scorer.shares)
        told = [[own[i] for i in batch.sequences] for batch in batches]
        if is_sharded(scorer.model):
            missing = max(gather([len(batches)])) - len(batches)
            again = batches[:1] or pack([(rows[0].context, rows[0].tokens)], self.max_tokens, share=scorer.shares)
            batches, told = batches + again * missing, told + [[]] * missing
        for members, batch in zip(told, batches, strict=True):
            with torch.autocast(scorer.model.device.type, torch.bfloat16, enabled=self.bf16):
                out = scorer(batch, self.temperature, entropy=True, hidden=self.hidden)
            yield members, batch, out

    @torch.no_grad()
    def __call__(self, model: Any, rows: Sequence[TrainingRow], read: Callable[[Scores], Tensor]) -> list[Tensor]:
        """(T,) numbers that the model tells, for each row; all processes get all of them."""
        numbers = {id(row): number for number, row in enumerate(rows)}
        found: list[tuple[int, Tensor]] = []
        with scoring(model) as scorer:
            for members, batch, out in self.batches(scorer, rows):
                if members:
                    parts = batch.split(read(out).cpu())
                    found += [(numbers[id(row)], values) for row, values in zip(members, parts, strict=True)]
        told = dict(gather(found))
        return [told[number] for number in range(len(rows))]
