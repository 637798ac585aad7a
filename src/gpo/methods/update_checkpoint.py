"""Checkpoints of updates that are not finished: of an online one a file, of an offline one directories."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from gpo.methods.processes import gather, load_optimizer, put, whole
from gpo.storage.files import remove, replacing, sync, write_text

WHOLE = "whole"  # a file that says that all others of a checkpoint are on the disk
SAVE_SECONDS, SAVE_SHARE = 240.0, 0.05  # between two checkpoints, and of the time, that saving may take


class SaveClock:
    """Whether an update is due to be saved: after minutes, and only so often that saving takes little of the time."""

    def __init__(self) -> None:
        self._began = self._saved = time.monotonic()
        self._took = 0.0

    @property
    def due(self) -> bool:
        """Of the first process, for all; each has to ask."""
        return gather([time.monotonic() - self._saved > max(SAVE_SECONDS, self._took / SAVE_SHARE)])[0]

    def begin(self) -> None:
        """The update is being saved."""
        self._began = time.monotonic()

    def end(self) -> None:
        """It is saved."""
        self._saved = time.monotonic()
        self._took = self._saved - self._began


@dataclass(frozen=True)
class UpdateCheckpoint:
    """Weights, optimizer and step metrics of one update, in one file that is replaced as a whole.

    What is there of another update, told by `fingerprint`, is not taken.
    """

    work_dir: Path
    fingerprint: str = ""

    @property
    def path(self) -> Path:
        return self.work_dir / "update.pt"

    def load(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
        """Put back what was saved; the metrics of the steps that are done."""
        if not self.path.is_file():
            return []
        state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        if state["fingerprint"] != self.fingerprint:
            return []
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            put(parameter, value)
        load_optimizer(optimizer, state["optimizer"])
        steps: list[dict[str, float]] = state["steps"]
        return steps

    def save(
        self,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        steps: Sequence[Mapping[str, float]],
        *,
        write: bool = True,
    ) -> None:
        """Replace the file; with `write` False only tell the others this process's part of what is in it."""
        state = {
            "fingerprint": self.fingerprint,
            "parameters": [whole(parameter.detach(), keep=write) for parameter in parameters],
            "optimizer": whole(optimizer.state_dict(), keep=write),
            "steps": list(steps),
        }
        if not write:
            return
        # A full disk is told by a file of Python's; that of torch says what was expected where.
        with replacing(self.path) as partial, partial.open("wb") as file:
            torch.save(state, file)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


class SyncedCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Brings each checkpoint of a trainer to the disk, marks it, and only then removes the one before.

    Some are made by the clock, beside those of the trainer's `save_steps`.
    """

    def __init__(self) -> None:
        self._clock = SaveClock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.save_strategy != "no" and self._clock.due:
            control.should_save = True
        if control.should_save:
            self._clock.begin()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        directory = Path(args.output_dir)
        newest = directory / f"checkpoint-{state.global_step}"
        sync(newest)
        write_text(newest / WHOLE, "")
        for path in set(directory.glob("checkpoint-*")) - {newest}:
            remove(path)
        self._clock.end()


def last_checkpoint(directory: Path) -> str | None:
    """The newest of a trainer's checkpoints that is on the disk as a whole."""
    found = [path for path in directory.glob("checkpoint-*") if (path / WHOLE).exists()]
    return str(max(found, key=lambda path: int(path.name.partition("-")[2]))) if found else None
