"""Engines for actors of Ray: they leave a mark, and some of them end their process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.errors import EngineError
from gpo.toy import ChainEngine
from gpo.types import Completion, Request


@dataclass
class Marking(ChainEngine):
    """Notes its process in a folder, with a line for each call."""

    folder: str = ""
    seconds: float = 0.0  # of a call

    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        with (Path(self.folder) / str(os.getpid())).open("a") as file:
            file.write(f"{len(requests)}\n")
        time.sleep(self.seconds)
        return super().generate(requests, **settings)


@dataclass
class Dying(ChainEngine):
    """Its process ends when it is asked for something of the seed `at`, or made where `at` is none."""

    at: int | None = None

    def __post_init__(self) -> None:
        if self.at is None:
            os._exit(1)

    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        if any(request.seed == self.at for request in requests):
            os._exit(1)
        return super().generate(requests, **settings)


class Pair(EngineError):
    """An error that does not survive being pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


@dataclass
class Broken(ChainEngine):
    """Raises an error of ours, or another one."""

    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        if requests[0].seed == 1:
            raise Pair("this", "that")
        raise ZeroDivisionError("by nothing")
