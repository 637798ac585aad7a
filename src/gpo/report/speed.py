"""How fast something grows, and how long the rest will take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Speed:
    """Growth per second over about the last `window` seconds: from the last mark before them to the newest one."""

    window: float = 60.0
    _marks: deque[tuple[float, float]] = field(default_factory=deque, init=False, repr=False)  # seconds, amount

    def note(self, seconds: float, amount: float) -> None:
        """Mark the amount that there is at a time, which is none before that of the last mark."""
        self._marks.append((seconds, amount))
        while len(self._marks) > 2 and self._marks[1][0] <= seconds - self.window:
            self._marks.popleft()

    @property
    def per_second(self) -> float:
        """0 while nothing can be said."""
        if len(self._marks) < 2:
            return 0.0
        (began, before), (ended, after) = self._marks[0], self._marks[-1]
        return max(0.0, after - before) / (ended - began) if ended > began else 0.0

    def left(self, total: float) -> float | None:
        """Seconds until the amount is `total`; None while nothing can be said."""
        speed = self.per_second
        return max(0.0, total - self._marks[-1][1]) / speed if speed else None
