"""The checkpoint of an online update that is not finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpo.storage.files import replacing


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
        state: dict[str, Any] = torch.load(self.path, weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            return []
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        steps: list[dict[str, float]] = state["steps"]
        return steps

    def save(
        self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, steps: Sequence[Mapping[str, float]]
    ) -> None:
        """Replace the file."""
        state = {
            "fingerprint": self.fingerprint,
            "parameters": [parameter.detach() for parameter in parameters],
            "optimizer": optimizer.state_dict(),
            "steps": list(steps),
        }
        with replacing(self.path) as partial:
            torch.save(state, partial)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
