"""How a trainer of transformers divides batches over processes.

A batch is that of all processes, and each has its part: any number of them takes the same steps. The loss of a part
counts as many times as it has rows, and metrics are gathered of any number of rows. (accelerate's own division has a
batch for each process, and fills up the last ones with rows that were there before.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from gpo.methods.processes import gather, shard_on_cpus

PairRow = dict[str, Any]  # what TRL's collators take, and what belongs to it


@dataclass
class Batches(TorchDataset[PairRow]):
    """The part that a process has of each batch: every so many rows, and `part`.

    `part` is how many rows these are, how many the batch has, and the weight of their mean: with it the mean over the
    processes and over the batches of a step is the mean over the rows of the step. Where there are fewer rows than
    processes, one of them has the first row, which is none of its own.
    """

    dataset: Dataset
    order: Sequence[int]  # indices into the data set, all epochs one after the other
    size: int  # rows of a batch, of all processes
    accumulated: int  # batches of a step
    process: int
    processes: int
    collate: Callable[[list[PairRow]], PairRow]

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.size)

    def __getitem__(self, number: int) -> PairRow:
        batch = self.order[number * self.size : (number + 1) * self.size]
        own = batch[self.process :: self.processes]
        rows = [self.dataset[i] for i in own or batch[:1]]
        first, of_step = number // self.accumulated * self.accumulated * self.size, self.accumulated * self.size
        in_step = len(self.order[first : first + of_step])
        weight = len(own) * self.processes * math.ceil(in_step / self.size) / in_step
        return {**self.collate(rows), "part": torch.tensor([len(own), len(batch), weight])}


class Divided:
    """Mixin in front of a TRL trainer."""

    train_dataset: Dataset
    data_collator: Any
    model: Any
    accelerator: Any
    args: Any

    def __init__(self, *args: Any, order: Sequence[int], **kwargs: Any) -> None:
        self.order = order  # indices into the dataset, all epochs one after the other
        self.own, self.rows = 0.0, 0.0  # of the batch that is trained on: the rows of this process, and of all
        self._made = False
        super().__init__(*args, **kwargs)
        self._made = True
        if self.accelerator.num_processes > 1:
            # Theirs wait for as many rows of each process.
            self.accelerator.gather = self.accelerator.gather_for_metrics = self._gather

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        shard_on_cpus(self.accelerator)

    @property
    def is_fsdp_enabled(self) -> bool:
        """Not while it is made: TRL would load a reference model, from the path in the model's configuration."""
        return self._made and bool(self.accelerator.is_fsdp2)

    @is_fsdp_enabled.setter
    def is_fsdp_enabled(self, value: bool) -> None:
        pass

    def get_train_dataloader(self) -> DataLoader[PairRow]:
        """A batch at a time, of which a process has its part."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        sizes = (self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps)
        batches = Batches(self.train_dataset, self.order, *sizes, process, processes, self.data_collator)
        return DataLoader(batches, batch_size=1, collate_fn=itemgetter(0))

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> torch.Tensor:
        """Such that its mean over processes and batches is the mean over all rows of the step."""
        weight: float
        self.own, self.rows, weight = inputs.pop("part").tolist()
        return self._loss(model, inputs) * weight

    def _loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean over this process's rows of a batch."""
        loss: torch.Tensor = super()._compute_loss(model, inputs, return_outputs=False)  # type: ignore[misc]
        return loss

    def _gather(self, tensor: torch.Tensor, **_: Any) -> torch.Tensor:
        """As accelerate's, for any number of rows of each process."""
        mine = tensor.detach().reshape(-1)[: None if self.own else 0]
        return torch.cat(gather([mine.cpu()])).to(tensor.device)

    def total(self, *numbers: torch.Tensor | float) -> list[float]:
        """Each number added up over the processes, as far as they have rows."""
        mine = [float(number) if self.own else 0.0 for number in numbers]
        return [sum(of_all) for of_all in zip(*gather([mine]), strict=True)]
