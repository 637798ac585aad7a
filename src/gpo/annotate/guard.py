"""What keeps strangers out: signed forms, limits on how often, headers for browsers."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass, field

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
}
REMEMBERED = 10_000  # addresses or annotators that a limit keeps in mind


def sign(key: str, secret: str) -> str:
    """The token that a form of this session carries."""
    return hmac.new(key.encode(), secret.encode(), hashlib.sha256).hexdigest()


def signed(key: str, secret: str, token: str) -> bool:
    """Whether a form was made for this session."""
    return hmac.compare_digest(sign(key, secret).encode(), token.encode())


@dataclass
class Limit:
    """A token bucket for each name: `burst` at once, `rate` a second after that."""

    rate: float
    burst: float
    _filled: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def allows(self, name: str, now: float | None = None) -> bool:
        now = time.monotonic() if now is None else now
        left, last = self._filled.pop(name, (self.burst, now))
        left = min(self.burst, left + (now - last) * self.rate)
        self._filled[name] = (left - 1 if left >= 1 else left, now)
        while len(self._filled) > REMEMBERED:
            self._filled.popitem(last=False)
        return left >= 1
