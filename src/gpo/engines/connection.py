"""Servers that answer the same: requests spread over them, asked again where that helps, and what went wrong counted.

A server that fails rests, longer each time; the others take its work meanwhile. Before it is asked the first time, and
after it was away, it is *prepared*: it may have been started again with something else.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from gpo.engines.endpoints import Refused, Server, Unanswered, Unusable, retry_after
from gpo.errors import EngineError, MissingDependency

T = TypeVar("T")
R = TypeVar("R")

REST = (0.25, 60.0)  # seconds that a server rests after its first failure, and at most without being asked to
ASKED_TO_REST = 600.0  # seconds of Retry-After that are granted at most
TRIES = 4  # of a request whose answers cannot be used
RESTS = "it rests"  # in place of a failure: another request has met one
SHOWN = 200  # characters of what a server says


class Connection:
    """Asks servers from a thread of its own, so that it may be used where an event loop runs already.

    Args:
        urls: without /v1.
        key: sent as a bearer token, and taken out of everything that is shown.
        timeout: seconds that an answer may take.
        patience: seconds after its first failure that a request is asked again.
        in_flight: requests at a time, of each server.
        prepare: raises EngineError for a server that must not be asked.
    """

    def __init__(
        self,
        urls: Sequence[str],
        prepare: Callable[[Server], Awaitable[None]],
        *,
        key: str | None,
        timeout: float,
        patience: float,
        in_flight: int,
    ) -> None:
        httpx = _httpx()
        self.servers = [Server(url) for url in urls]
        self.trouble: Counter[str] = Counter()  # what went wrong and was asked again, by kind
        self._prepare, self._key = prepare, key
        self._timeout, self._patience, self._in_flight = timeout, patience, in_flight
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="gpo servers", daemon=True)
        self._thread.start()
        most = in_flight * len(urls)
        self._client = httpx.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 30.0), pool=None),
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
        )
        self._stop = weakref.finalize(self, _stop, self._loop, self._client)  # also of one that nobody closes

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """The result of a coroutine, which is cancelled if this thread is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def results(self, items: Iterable[T], ask: Callable[[T], Awaitable[R]]) -> Iterator[tuple[T, R]]:
        """Each item with what `ask` says of it, as they come. Items are taken one by one when their turn comes.

        The first failure ends it, and so does closing the iterator; what is in flight then is cancelled.
        """
        found: SimpleQueue[tuple[T, R] | None] = SimpleQueue()
        future: Future[None] = asyncio.run_coroutine_threadsafe(self._work(iter(items), ask, found.put), self._loop)
        future.add_done_callback(lambda _: found.put(None))
        try:
            while (each := found.get()) is not None:
                yield each
            future.result()
        finally:
            future.cancel()

    async def _work(
        self, items: Iterator[T], ask: Callable[[T], Awaitable[R]], put: Callable[[tuple[T, R]], None]
    ) -> None:
        async def worker() -> None:
            for item in items:
                put((item, await ask(item)))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._in_flight * len(self.servers)):
                    group.create_task(worker())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None

    async def begin(self, patience: float = 0.0) -> None:
        """Prepare every server. One of several may be away.

        Args:
            patience: seconds to wait for the first one.

        Raises:
            EngineError: none answers, or one must not be asked.
        """
        until = time.monotonic() + patience
        while True:
            away = []
            for server in self.servers:
                try:
                    await self._make_ready(server)
                except Unanswered as failure:
                    self._rest(server, failure)
                    away.append(f"{server.url} ({failure.kind})")
            if len(away) < len(self.servers):
                return
            next_try = min(server.rests_until for server in self.servers)
            if next_try > until:
                raise EngineError(
                    f"No server answers at {', '.join(away)}. Start it, or name another: --engine.base_url "
                    "http://HOST:PORT."
                )
            await asyncio.sleep(next_try - time.monotonic())

    async def ask(self, path: str, body: Callable[[Server], Any], read: Callable[[Any, Server], R]) -> R:
        """What `read` makes of the answer of one of the servers; `Unusable` from it has the request asked again.

        Raises:
            EngineError: nobody answers in time, or not what was asked for, or the request is refused.
        """
        first: float | None = None
        attempts = unusable = 0
        said = ""
        while True:
            server = await self._awake(first)
            attempts += 1
            server.asked += 1
            try:
                await self._make_ready(server)
                answer = read(await self.call(server, "POST", path, body(server)), server)
            except Unanswered as failure:
                if failure.kind == RESTS:
                    continue
                kind = failure.kind
                self._rest(server, failure)
            except Unusable as failure:
                kind, said, unusable = failure.kind, str(failure), unusable + 1
            except Refused as refused:
                if refused.status != 404:
                    raise
                # A server that was started again lacks what was loaded into it.
                kind, unusable, server.ready = "HTTP 404", unusable + 1, False
                if unusable == TRIES:
                    raise
            else:
                server.failures = 0
                return answer
            finally:
                server.asked -= 1
            self.trouble[kind] += 1
            first = first if first is not None else time.monotonic()
            if unusable == TRIES:
                raise EngineError(
                    f"{server.url} has answered {TRIES} times what cannot be used, last: {self.shown(said)}. What is "
                    "finished is kept. Look at the server, then give the same command again."
                )
            if time.monotonic() - first > self._patience:
                raise self._given_up(server, kind, attempts)

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
            Unusable: what it answers is no JSON.
            Refused: it will not.
        """
        httpx = _httpx()
        try:
            async with asyncio.timeout(timeout or self._timeout):
                response = await self._client.request(
                    method, server.url + path, json=body, **({} if timeout is None else {"timeout": timeout})
                )
        except (TimeoutError, httpx.TimeoutException):
            raise Unanswered("time-out") from None
        except httpx.ConnectError:
            raise Unanswered("no connection") from None
        except httpx.TransportError:
            raise Unanswered("cut connection") from None
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise Unanswered(f"HTTP {status}", retry_after(response.headers.get("retry-after")))
        if status >= 300:
            raise self._refusal(server, path, status, response.text)
        try:
            return response.json() if reads and response.content else None
        except ValueError:
            raise Unusable("no JSON") from None

    async def _make_ready(self, server: Server) -> None:
        """One request at a time finds out what a server is; the others wait for it."""
        if server.ready:
            return
        async with server.lock:
            if server.ready:
                return
            if server.rests_until > time.monotonic():
                raise Unanswered(RESTS)
            for attempt in range(TRIES):
                try:
                    await self._prepare(server)
                except (Unanswered, Unusable) as failure:
                    # Before the first answer nobody waits for a server that is not there.
                    last = attempt == TRIES - 1 or failure.kind in ("no connection", "time-out")
                    if last and isinstance(failure, Unusable):
                        raise EngineError(
                            f"What answers at {server.url} is no server of /v1/completions ({failure}). Give "
                            "--engine.base_url the address of one, such as http://127.0.0.1:8000."
                        ) from None
                    if last:
                        raise
                    self.trouble[failure.kind] += 1
                    await asyncio.sleep(getattr(failure, "wait", None) or REST[0] * 2**attempt)
                else:
                    server.ready = True
                    return

    async def _awake(self, first: float | None) -> Server:
        """The least busy server that does not rest; waits for one."""
        while True:
            now = time.monotonic()
            awake = [server for server in self.servers if server.rests_until <= now]
            if awake:
                return min(awake, key=lambda server: server.asked)
            server = min(self.servers, key=lambda server: server.rests_until)
            if first is not None and server.rests_until - first > self._patience:
                raise self._given_up(server, RESTS, server.failures)
            # A little apart, so that those who waited do not come all at once.
            await asyncio.sleep((server.rests_until - now) * random.uniform(1.0, 1.25))

    def _rest(self, server: Server, failure: Unanswered) -> None:
        now = time.monotonic()
        if failure.kind != "HTTP 429":
            server.ready = False
        if failure.wait is not None:
            server.rests_until = max(server.rests_until, now + min(failure.wait, ASKED_TO_REST))
        elif server.rests_until <= now:  # requests that fail together are one failure
            server.rests_until = now + min(REST[1], REST[0] * 2**server.failures) * random.uniform(0.5, 1.0)
            server.failures += 1

    def _given_up(self, server: Server, kind: str, attempts: int) -> EngineError:
        most = self.trouble.most_common(1)[0][0] if self.trouble else kind
        busy = " Ask for less at a time: --engine.in_flight." if most == "HTTP 429" else ""
        return EngineError(
            f"{server.url} has not answered a request for {self._patience:g} s ({attempts} attempts, most often: "
            f"{most}). What is finished is kept; once it answers, the same command goes on.{busy}"
        )

    def _refusal(self, server: Server, path: str, status: int, text: str) -> Refused:
        where, said = f"{server.url}{path}", self.shown(text)
        if status in (401, 403):
            advice = "Put the key into the environment variable that --engine.key_variable names (OPENAI_API_KEY)."
            said = "" if self._key is None else "it does not take this key"
        elif status == 404:
            advice = "Is it a server of /v1/completions, and does it have the model? --engine.base_url, .served_model"
        else:
            advice = "Change what it objects to."
        return Refused(f"{where} refuses with HTTP {status}{': ' * bool(said)}{said}. {advice}", status)

    def shown(self, text: str) -> str:
        """What a server said, fit for a message: one short line without control characters, and without the key."""
        text = text if self._key is None else text.replace(self._key, "***")
        line = "".join(c if c.isprintable() else " " for c in text[: 4 * SHOWN])
        line = " ".join(line.split()).rstrip(".")
        return line if len(line) <= SHOWN else line[:SHOWN] + "…"

    def again(self, prepare: Callable[[Server], Awaitable[None]]) -> Connection:
        """Another one to the same servers."""
        urls, key = [server.url for server in self.servers], self._key
        return Connection(
            urls, prepare, key=key, timeout=self._timeout, patience=self._patience, in_flight=self._in_flight
        )

    def close(self) -> None:
        """Nothing is asked any more; what is in flight is given up."""
        self._stop()
        self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, client: Any) -> None:
    async def finish() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.aclose()
        for _ in range(3):  # transports close in the turn after
            await asyncio.sleep(0)
        loop.stop()

    asyncio.run_coroutine_threadsafe(finish(), loop)


def _httpx() -> Any:
    """Raises: MissingDependency if it is not installed."""
    try:
        import httpx2
    except ImportError as error:
        raise MissingDependency(f"{error}. The engine needs: pip install 'gpo[server]'") from error
    return httpx2
