"""What the rollouts of one question cost, while they are sampled."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from gpo.report.progress import clock, short

NAMES = {
    "votes": "samples that vote",
    "solution": "one solution",
    "search": "search of its steps",
    "check": "fresh rollouts",
}


class SamplingDisplay:
    """An `OnSample`: a line with rollouts, tokens and time for each part on a terminal, nothing elsewhere.

    The time goes on while an engine is at work.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self.tokens: Counter[str] = Counter()  # by part
        self.rollouts: Counter[str] = Counter()
        self._now = now
        self._began: dict[str, float] = {}
        self._last = now()  # when the last piece was there
        self._lines: dict[str, TaskID] = {}
        self.bars = Bars(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<19}", markup=False),
            TextColumn("{task.fields[amount]:>33}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, part: str, rollouts: int, tokens: int) -> None:
        self._last = self._now()
        if part not in self._lines:
            for line in self._lines.values():
                self.bars.update(line, total=1, completed=1)
            self._began[part] = self._last
            self._lines[part] = self.bars.add_task(NAMES.get(part, part), total=None, amount="")
        self.rollouts[part] += rollouts
        self.tokens[part] += tokens
        self.bars.update(self._lines[part], amount=self.amount(part))

    def amount(self, part: str) -> str:
        """Such as `16 rollouts 8.2k tokens 310 tok/s`."""
        seconds = self._last - self._began[part]
        speed = f"{short(self.tokens[part] / seconds)} tok/s" if seconds > 0 and self.tokens[part] else ""
        ending = " " if self.rollouts[part] == 1 else "s"
        return f"{self.rollouts[part]} rollout{ending} {short(self.tokens[part]):>5} tokens {speed:>10}"

    @property
    def summary(self) -> str:
        """Tokens and time of all, by part."""
        seconds = self._last - min(self._began.values(), default=self._last)
        took = f"{seconds:.1f} s" if seconds < 60 else f"{clock(seconds)} min" if seconds < 6000 else clock(seconds)
        speed = f", {short(self.tokens.total() / seconds)} a second" if seconds > 0 else ""
        parts = ", ".join(f"{NAMES.get(part, part)} {tokens:,}" for part, tokens in self.tokens.items())
        return f"Sampled {self.tokens.total():,} tokens in {took}{speed}: {parts}."
