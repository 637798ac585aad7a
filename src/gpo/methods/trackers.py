"""Metrics to TensorBoard, Weights & Biases or trackio, beside the JSON lines that are always written."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from gpo.errors import ConfigError, MissingDependency, unknown
from gpo.storage.codec import dotted

PROJECT = "gpo"


@dataclass
class Trackers:
    """Hands rows of metrics to trackers, each of which is opened at the first row.

    A row's step is its line in the metrics file, so that training that goes on after a kill, or in another round,
    goes on with the same curves. TensorBoard writes to `tensorboard` beside that file, Weights & Biases to `wandb`
    beside it (offline unless WANDB_MODE says otherwise), and trackio to its own place (TRACKIO_DIR). The last two get
    the settings too, when they are opened.

    Raises:
        ConfigError: an unknown name.
        MissingDependency: a tracker that is not installed.
    """

    names: Sequence[str]
    _opened: list[Any] = field(default_factory=list, init=False, repr=False)
    _path: Path | None = field(default=None, init=False, repr=False)
    _step: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in KNOWN:
                raise unknown("tracker", name, KNOWN)
            if find_spec(name) is None:
                raise MissingDependency(f"The tracker {name!r} is not installed: pip install 'gpo[{name}]'")

    def log(
        self, row: Mapping[str, float], metrics_path: Path | None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Hand over the row that was written to the metrics file last.

        Args:
            settings: of the run, JSON.

        Raises:
            ConfigError: there is no such file.
        """
        if not self.names:
            return
        if metrics_path is None:
            raise ConfigError("trackers need metrics_path, the file beside which they write.")
        if metrics_path != self._path:
            self.close()
            self._path = metrics_path
        with redirect_stdout(StringIO()):  # trackio prints into the progress display
            if not self._opened:
                with metrics_path.open("rb") as lines:
                    self._step = sum(1 for _ in lines) - 1
                self._opened = [KNOWN[name](metrics_path, self._step) for name in self.names]
                for name, tracker in zip(self.names, self._opened, strict=True):
                    tracker.start()
                    if settings and name != "tensorboard":  # which would show them as one more training
                        told = dotted(settings).items()
                        tracker.store_init_configuration(
                            {name: json.dumps(each) if isinstance(each, list | tuple) else each for name, each in told}
                        )
            for tracker in self._opened:
                tracker.log(dict(row), step=self._step)
        self._step += 1

    def close(self) -> None:
        """Write what is left; a row that comes later opens them again."""
        with redirect_stdout(StringIO()):
            for tracker in self._opened:
                tracker.finish()
        self._opened = []


def _identity(metrics_path: Path) -> str:
    """A name for this training that later processes find again."""
    file = metrics_path.with_name("tracker-id")
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text()


def _tensorboard(metrics_path: Path, step: int) -> Any:
    from accelerate.tracking import TensorBoardTracker

    # Of a training that was killed: what it had written of this step and later ones is not shown.
    return TensorBoardTracker("tensorboard", metrics_path.parent, purge_step=step)


def _wandb(metrics_path: Path, step: int) -> Any:
    from accelerate.tracking import WandBTracker

    return WandBTracker(
        PROJECT,
        name=str(metrics_path.parent),
        id=_identity(metrics_path),
        dir=str(metrics_path.parent),
        mode=os.environ.get("WANDB_MODE", "offline"),
        resume="allow",
        settings={"silent": True, "console": "off"},
    )


def _trackio(metrics_path: Path, step: int) -> Any:
    from accelerate.tracking import TrackioTracker

    name = f"{metrics_path.parent} {_identity(metrics_path)}"
    return TrackioTracker(PROJECT, name=name, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False)


KNOWN: Mapping[str, Callable[[Path, int], Any]] = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
