"""Where servers are, the key for them, and what may come in place of an answer."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from gpo.errors import ConfigError, EngineError

KEY = "OPENAI_API_KEY"


class Unanswered(Exception):
    """A request that may be answered another time, by kind; details are for messages only.

    `wait` is what the server asks for, in seconds.
    """

    def __init__(self, kind: str, detail: str = "", wait: float | None = None) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.wait = kind, wait


class Foreign(Unanswered):
    """What another program answers, such as the page of a gateway while the server behind it starts."""


class Unusable(Exception):
    """An answer that is not what was asked for, by kind; details are for messages only."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind} ({detail})" if detail else kind)
        self.kind = kind


class Refused(EngineError):
    """A request that the server will not answer another time either; `said` is its reason, fit for a message."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


@dataclass(eq=False)
class Server:
    """One of several that answer the same. What `prepare` has found out is in `known`."""

    url: str
    asked: int = 0  # requests in flight
    failures: int = 0  # in a row
    failure: str = ""  # the last one
    told: float = float("-inf")  # when it was said last that it fails, by the monotonic clock
    rests_until: float = 0.0  # by the monotonic clock
    ready: bool = False
    known: dict[str, Any] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def place(self) -> str:
        """For messages: the address, and the proxy on the way to it."""
        proxy = proxy_of(self.url)
        return self.url if proxy is None else f"{self.url} through the proxy {proxy}"


def addresses(text: str) -> list[str]:
    """Base URLs without /v1.

    Raises:
        ConfigError: there is none, or one is no address of a server, or holds a secret.
    """
    urls = [each.strip().rstrip("/").removesuffix("/v1").rstrip("/") for each in text.split(",") if each.strip()]
    for url in urls:
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                "A base URL holds a user, a password or a query, which would be written to the run directory. Give "
                f"--engine.base_url http://HOST:PORT, and the key in the environment variable {KEY}."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no base URL. Give --engine.base_url such as http://127.0.0.1:8000.")
    if not urls:
        raise ConfigError("Where is the server? Give --engine.base_url such as http://127.0.0.1:8000.")
    return urls


def is_here(url: str) -> bool:
    """Whether it is the address of this machine, where no proxy leads."""
    host = urlsplit(url).hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an address, without its password."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_here(url) or proxy_bypass(parts.netloc):
        return None
    return proxy.rpartition("://")[2].rpartition("@")[2].rstrip("/")


def key_of(variable: str) -> str | None:
    """The key in an environment variable.

    Raises:
        ConfigError: a variable that was named does not exist, or what it holds is no key.
    """
    key = os.environ.get(variable, "").strip()
    if not key and variable != KEY:
        raise ConfigError(f"The environment variable {variable}, which --engine.key_variable names, holds no key.")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"What the environment variable {variable} holds is no key: it has other signs than ASCII.")
    return key or None


def retry_after(told: str | None) -> float | None:
    """Seconds, of a header that has a number of them or a date."""
    if told is None:
        return None
    try:
        if told.replace(".", "", 1).isdigit():
            return float(told)
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
