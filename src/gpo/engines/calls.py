"""One request to one server, and what comes in place of its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from gpo.engines.endpoints import Foreign, Refused, Server, Unanswered, Unusable, is_here, retry_after
from gpo.engines.streaming import needed

SHOWN = 200  # characters of what a server says
LONGEST = 8 << 20  # bytes of an answer, unpacked, beside those of tokens
OF_TOKEN = 1 << 10  # bytes of a token with its text and log-probabilities


class Caller:
    """Sends requests.

    Args:
        urls: without /v1.
        key: sent as a bearer token, and taken out of everything that is shown.
        timeout: seconds that an answer may take.
        in_flight: requests at a time, of each server.
    """

    def __init__(self, urls: Sequence[str], *, key: str | None, timeout: float, in_flight: int) -> None:
        httpx = needed("httpx2", "server")
        self._key, self._timeout, self._in_flight = key, timeout, in_flight
        most = in_flight * len(urls)
        self._client = httpx.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 30.0), pool=None),
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            # Proxies of the environment do not lead to this machine.
            mounts={f"all://{urlsplit(url).netloc}": None for url in urls if is_here(url)},
        )

    async def call(
        self,
        server: Server,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout: float | None = None,
        reads: bool = True,
    ) -> Any:
        """The JSON that one server answers; None if it is not to be read.

        Raises:
            Unanswered: it may answer another time.
            Foreign: what it answers is no JSON.
            Unusable: what it answers is longer than any answer to this is; it is not read to its end.
            Refused: it will not.
        """
        httpx = needed("httpx2", "server")
        try:
            async with asyncio.timeout(timeout or self._timeout):
                wait = {} if timeout is None else {"timeout": timeout}
                async with self._client.stream(method, server.url + path, json=body, **wait) as response:
                    content = await _read(response, longest(body))
        except (TimeoutError, httpx.TimeoutException):
            raise Unanswered("time-out") from None
        except httpx.ConnectError:
            raise Unanswered("no connection") from None
        except httpx.DecodingError:
            raise Foreign("no JSON") from None
        except httpx.RequestError:
            raise Unanswered("cut connection") from None
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            asked = retry_after(response.headers.get("retry-after"))
            raise Unanswered(f"HTTP {status}", self.shown(_text(content)), asked)
        if status >= 300:
            raise self._refusal(server, path, status, _text(content))
        try:
            return json.loads(content) if reads and content else None
        except (ValueError, RecursionError):
            raise Foreign("no JSON", self.shown(_text(content))) from None

    def _refusal(self, server: Server, path: str, status: int, text: str) -> Refused:
        where, said = f"{server.url}{path}", self.shown(text)
        if status in (401, 403):
            advice = "Put the key into the environment variable that --engine.key_variable names (OPENAI_API_KEY)."
            said = "" if self._key is None else "it does not take this key"
        else:
            advice = "Change what it objects to."
        return Refused(f"{where} refuses with HTTP {status}{': ' * bool(said)}{said}. {advice}", status, said)

    def shown(self, text: str) -> str:
        """What a server said, fit for a message: one short line without control characters, and without the key."""
        text = text if self._key is None else text.replace(self._key, "***")
        line = "".join(c if c.isprintable() else " " for c in text[: 4 * SHOWN])
        line = " ".join(line.split()).rstrip(".")
        return line if len(line) <= SHOWN else line[:SHOWN] + "…"


def longest(body: Any) -> int:
    """Bytes that no honest answer to a request is longer than: those of prompt and response of each continuation."""
    if not isinstance(body, Mapping) or "prompt" not in body:
        return LONGEST
    return LONGEST + OF_TOKEN * int(body.get("n", 1)) * (len(body["prompt"]) + int(body["max_tokens"]))


async def _read(response: Any, most: int) -> bytes:
    """Raises: Unusable as soon as more bytes have come, unpacked."""
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > most:
            raise Unusable("an answer that is too long", f"more than {most:,} bytes")
    return bytes(content)


def _text(content: bytes) -> str:
    return content[: 16 * SHOWN].decode("utf-8", "replace")
