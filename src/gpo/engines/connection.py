"""Servers that answer the same: requests spread over them, asked again where that helps, and what went wrong counted.

A server that fails rests, longer each time; the others take its work meanwhile. So does one of several that refuses a
request or answers what cannot be used: such a server is fast, and would get every request. Before a server is asked
the first time, and after it was away, it is *prepared*: it may have been started again with something else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from queue import SimpleQueue
from typing import Any, TypeVar

from gpo.engines.calls import Caller
from gpo.engines.endpoints import Foreign, Refused, Server, Unanswered, Unusable
from gpo.errors import EngineError, ServerAway

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Failure = Unanswered | Unusable | EngineError

REST = (0.25, 60.0)  # seconds that a server rests after its first failure, and at most without being asked to
ASKED_TO_REST = 600.0  # seconds of Retry-After that are granted at most
TRIES = 4  # of a request whose answers cannot be used, and to find a server where another program answers
TOLD = 60.0  # seconds from one warning of a server that fails to the next
SLOW = 5.0  # seconds of silence at the beginning that are told
CLOSING = 10.0  # seconds to wait for connections that close
RESTS = "it rests"  # in place of a failure: another request has met one


class Connection(Caller):
    """Asks servers from a thread of its own, so that it may be used where an event loop runs already.

    Args:
        urls, key, timeout, in_flight: see `Caller`.
        patience: seconds after its first failure that a request is asked again, and to wait for the first server.
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
        super().__init__(urls, key=key, timeout=timeout, in_flight=in_flight)
        self.servers = [Server(url) for url in urls]
        self.trouble: Counter[str] = Counter()  # what went wrong and was asked again, by kind
        self._prepare, self._patience = prepare, patience
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="gpo servers", daemon=True)
        self._thread.start()
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

    async def begin(self, *, first: bool = False) -> None:
        """Prepare every server. Some may be away; where all are, they are waited for.

        Args:
            first: nothing was asked before. Another program is taken for a wrong address then, and a refusal of one
                server ends it; later they are failures of a server like others.

        Raises:
            EngineError: none answers, or one must not be asked.
        """
        until = time.monotonic() + self._patience
        places = ", ".join(server.place for server in self.servers)
        slow = self._loop.call_later(SLOW if first else self._patience, log.warning, "Waiting for %s.", places)
        for tries in count(1):
            try:
                away = await self._away(first)
            finally:
                slow.cancel()
            several = len(away) < len(self.servers)
            for server, failure in away.items():
                if not (first and isinstance(failure, Foreign)) or several:
                    self._warn(server, failure)
            if several:
                return
            for server, failure in away.items():
                if first and tries >= TRIES and isinstance(failure, Foreign):
                    raise EngineError(
                        f"What answers at {server.place} is no server of /v1/completions ({failure}). Give "
                        "--engine.base_url the address of one, such as http://127.0.0.1:8000."
                    )
            if time.monotonic() >= until:
                failed = ", ".join(f"{server.place} ({server.failure})" for server in self.servers)
                raise ServerAway(
                    f"No server answers at {failed}. Start it, or name another: --engine.base_url http://HOST:PORT."
                )
            await self._awake(until)

    async def _away(self, first: bool) -> dict[Server, Failure]:
        """The servers that cannot be asked now, and why; the others are prepared.

        Raises:
            EngineError: the first refusal if `first`; else every server refuses.
        """
        away: dict[Server, Failure] = {}
        for server in self.servers:
            try:
                await self._make_ready(server)
            except Unanswered as unanswered:
                away[server] = unanswered
            except EngineError as refusal:
                away[server] = refusal
                if first or all(isinstance(away.get(each), EngineError) for each in self.servers):
                    raise
            if server in away:
                self._rest(server, away[server])
        return away

    async def ask(self, path: str, body: Callable[[Server], Any], read: Callable[[Any, Server], R]) -> R:
        """What `read` makes of the answer of one of the servers; `Unusable` from it has the request asked again.

        Raises:
            EngineError: nobody answers in time, or not what was asked for, or every server refuses the request.
        """
        first: float | None = None
        attempts = 0
        unusable: Counter[Server] = Counter()
        refusals: set[Server] = set()
        failure: Failure
        while True:
            server = await self._awake(None if first is None else first + self._patience, refusals)
            server.asked += 1
            try:
                answer = await self._answer(server, path, body, read)
            except Unanswered as unanswered:
                if unanswered.kind == RESTS:
                    continue
                failure = unanswered
            except Unusable as wrong:
                failure = wrong
                unusable[server] += 1
            except EngineError as refusal:
                failure = refusal
                refusals.add(server)
                if len(refusals) == len(self.servers):
                    raise
            else:
                server.failures = 0
                return answer
            finally:
                server.asked -= 1
            attempts += 1
            self.trouble[kind_of(failure)] += 1
            if not isinstance(failure, Unusable) or len(self.servers) > 1:
                self._rest(server, failure)
                self._warn(server, failure)
            now = time.monotonic()
            first = now if first is None else first
            failed = refusals | unusable.keys()
            if isinstance(failure, Unusable) and unusable.total() >= TRIES and failed == set(self.servers):
                raise EngineError(
                    f"{server.place} has answered {unusable[server]} times what cannot be used, last: "
                    f"{self.shown(str(failure))}. What is finished is kept. Look at the server, then give the same "
                    "command again."
                )
            if now - first >= self._patience:
                raise self._given_up(server, failure, now - first, attempts)

    async def _answer(
        self, server: Server, path: str, body: Callable[[Server], Any], read: Callable[[Any, Server], R]
    ) -> R:
        """Raises: Unanswered, Unusable, EngineError."""
        await self._make_ready(server)
        try:
            answer = await self.call(server, "POST", path, body(server))
        except Refused as refused:
            raise _missing(refused) from None
        try:
            return read(answer, server)
        except (Unanswered, Unusable, EngineError):
            raise
        except Exception as error:  # a stranger's JSON may hold anything anywhere
            raise Unusable("an answer that cannot be read", f"{type(error).__name__}: {error}") from None

    async def _make_ready(self, server: Server) -> None:
        """One request at a time finds out what a server is; the others wait for it."""
        if server.ready:
            return
        async with server.lock:
            if server.ready:
                return
            if server.rests_until > time.monotonic():
                raise Unanswered(RESTS)
            try:
                await self._prepare(server)
            except Refused as refused:
                raise _missing(refused) from None
            except Unusable as failure:
                raise Foreign(failure.kind, self.shown(str(failure))) from None
            server.ready = True

    async def _awake(self, until: float | None, without: Collection[Server] = ()) -> Server:
        """The least busy server that does not rest; waits for one.

        Args:
            until: when every rest ends, so that servers are asked once more before they are given up.
            without: servers that are not waited for.
        """
        servers = [server for server in self.servers if server not in without]
        while True:
            now = time.monotonic()
            if until is not None and now >= until:
                for server in servers:
                    server.rests_until = min(server.rests_until, now)
            awake = [server for server in servers if server.rests_until <= now]
            if awake:
                return min(awake, key=lambda server: server.asked)
            # A little apart, so that those who waited do not come all at once.
            pause = (min(server.rests_until for server in servers) - now) * random.uniform(1.0, 1.25)
            await asyncio.sleep(pause if until is None else min(pause, until - now))

    def _rest(self, server: Server, failure: Failure) -> None:
        kind, wait = kind_of(failure), getattr(failure, "wait", None)
        if kind == RESTS:
            return
        now = time.monotonic()
        server.failure = self.shown(str(failure))
        if kind != "HTTP 429":
            server.ready = False
        if wait is not None:
            server.rests_until = max(server.rests_until, now + min(wait, ASKED_TO_REST))
        elif server.rests_until <= now:  # requests that fail together are one failure
            server.rests_until = now + min(REST[1], REST[0] * 2 ** min(server.failures, 30)) * random.uniform(0.5, 1.0)
            server.failures += 1

    def _warn(self, server: Server, failure: Failure) -> None:
        """Say that a server fails, if that was not said a short while ago."""
        now, kind = time.monotonic(), kind_of(failure)
        if kind == RESTS or now - server.told < TOLD:
            return
        server.told = now
        what = str(failure) if isinstance(failure, EngineError) else f"{server.place}: {server.failure}."
        others = "; others have its work" if len(self.servers) > 1 else f", for {self._patience:g} s at most"
        where = " Does it run, and is the address right (--engine.base_url)?" if kind == "no connection" else ""
        log.warning("%s It is asked again%s.%s", what, others, where)

    def _given_up(self, server: Server, failure: Failure, seconds: float, attempts: int) -> EngineError:
        busy = " Ask for less at a time: --engine.in_flight." if kind_of(failure) == "HTTP 429" else ""
        return ServerAway(
            f"{server.place} has not answered a request for {round(seconds, 1):g} s "
            f"({attempts} attempt{'s' * (attempts > 1)}, last: {self.shown(str(failure))}). What is finished is kept; "
            f"once it answers, the same command goes on.{busy}"
        )

    def again(self, prepare: Callable[[Server], Awaitable[None]]) -> Connection:
        """Another one to the same servers."""
        urls, key = [server.url for server in self.servers], self._key
        return Connection(
            urls, prepare, key=key, timeout=self._timeout, patience=self._patience, in_flight=self._in_flight
        )

    def close(self) -> None:
        """Nothing is asked any more; what is in flight is given up."""
        self._stop()
        self._thread.join(CLOSING)


def kind_of(failure: Failure) -> str:
    """What it is counted as."""
    if isinstance(failure, Refused):
        return f"HTTP {failure.status}"
    return "a server that cannot be used" if isinstance(failure, EngineError) else failure.kind


def _missing(refused: Refused) -> Exception:
    """404 is what a gateway says without its server, and a server that has lost what was loaded into it."""
    return Foreign("HTTP 404", refused.said) if refused.status == 404 else refused


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
