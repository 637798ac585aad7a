"""The rollout engine for servers of /v1/completions that take token ids and give token ids: vLLM, SGLang."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from gpo.engines.completions import Ask, choices_of, nat, nats_of, read_sampled, seed_of, told_nats
from gpo.engines.connection import Connection
from gpo.engines.endpoints import KEY, Server, Unanswered, Unusable, addresses, key_of
from gpo.engines.requests import check_continuations, check_temperature, token_limits
from gpo.engines.served import Weights, bring_weights, check_server, find_model, takes_adapters, unload_adapter
from gpo.engines.served_tokens import TokenFacts, facts_of
from gpo.engines.streaming import StreamingEngine, counted
from gpo.errors import ConfigError, EngineError
from gpo.types import Completion, ModelRef, Request

log = logging.getLogger(__name__)


@dataclass
class OpenAIEngine(StreamingEngine):
    """Samples from one or several servers. They hold the weights; tokenizer and configuration are read here.

    Every answer is held against what was asked: model, prompt, number, token ids, ends, log-probabilities. What cannot
    be used is asked again, as what was not answered is. `trouble` counts the kinds.
    """

    model: Any = None  # what the servers serve: directory or hub id, for its tokenizer, and for training
    base_url: str = "http://127.0.0.1:8000"  # of a server; several, which serve the same, with commas between them
    served_model: str | None = None  # what the servers call it; None: the one of that name or place, or the only one
    tokenizer: Any = None  # object, directory or hub id; None: the model's own
    key_variable: str = KEY  # environment variable that holds the key, where servers want one
    in_flight: int = 64  # requests at a time, of each server
    samples_per_request: int = 1  # more than one is for servers that give each a seed of its own, as vLLM does
    timeout: float = 600.0  # seconds that an answer may take
    patience: float = 600.0  # seconds after its first failure that a request is asked again; also to wait for a start
    chat_template_kwargs: Mapping[str, Any] | None = None  # what the chat template reads beside the turns, as JSON
    _ref: ModelRef | None = field(default=None, init=False, repr=False, compare=False)  # None: closed
    _facts: TokenFacts | None = field(default=None, init=False, repr=False, compare=False)
    _connection: Connection | None = field(default=None, init=False, repr=False, compare=False)
    _weights: Weights = field(default=Weights(), init=False, repr=False, compare=False)
    _base: str = field(default="", init=False, repr=False, compare=False)  # source of the servers' first weights

    def __post_init__(self) -> None:
        for name in ("in_flight", "samples_per_request", "timeout", "patience"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a number above 0.")
        urls = addresses(self.base_url)
        if self.model is None:
            raise ConfigError("Which model do the servers serve? Give model= its directory or hub id.")
        ref = self.model if isinstance(self.model, ModelRef) else ModelRef(str(self.model), str(self.model))
        self._facts = facts_of(ref, self.tokenizer, self.chat_template_kwargs)
        self.tokenizer = self._facts.tokenizer
        self._base = self._facts.base
        self._weights = Weights.of(ref, self._base)
        key = key_of(self.key_variable)
        self._connection = Connection(
            urls, self._prepare, key=key, timeout=self.timeout, patience=self.patience, in_flight=self.in_flight
        )
        self._ref = ref
        try:
            self._connection.run(self._connection.begin(first=True))
        except BaseException:
            self.close()
            raise

    def __copy__(self) -> Self:
        """Another engine with a connection of its own: closing one leaves the other open."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        if self._connection is not None:
            twin._connection = self._connection.again(twin._prepare)
        return twin

    async def _prepare(self, server: Server) -> None:
        """Before a server is asked, and after it was away."""
        connection, facts = self._connection, self._facts
        assert connection is not None, "a closed engine asks nobody"
        assert facts is not None, "facts are read before anybody is asked"
        card = await find_model(connection, server, self.served_model, str(self._base))
        server.known["model"] = str(card["id"])
        # vLLM answers with the first of the names that it has for its model.
        server.known["names"] = {str(card["id"]), server.known["bases"][0]}
        room = card.get("max_model_len")
        if type(room) is not int or room < 1:  # not told
            room = facts.context_length
        server.known["room"] = min(room, facts.context_length)
        if "tempered" not in server.known:
            await check_server(
                connection, server, str(card["id"]), self.tokenizer, facts.vocabulary, server.known["room"]
            )
        # vLLM 0.32 dies of log-probabilities of a prompt where adapters are enabled (seen on a CPU).
        server.known["echoes"] = not await takes_adapters(connection, server)
        await bring_weights(connection, server, self._weights, str(card.get("root") or self._base))

    def _open(self) -> tuple[Connection, TokenFacts]:
        """What a closed engine does not have."""
        if self._connection is None or self._facts is None:
            raise EngineError("The engine is closed. Make a new one.")
        return self._connection, self._facts

    def _look_again(self, connection: Connection) -> None:
        """Of servers whose weights can change: somebody may have changed them, or started one again, since."""
        for server in connection.servers:
            server.ready = server.ready and not server.known.get("changes")

    @property
    def trouble(self) -> Mapping[str, int]:
        """What went wrong and was asked again, by kind."""
        return Counter() if self._connection is None else Counter(self._connection.trouble)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and response together: the least of what the servers and the model have."""
        connection, facts = self._open()
        rooms: list[int] = [server.known["room"] for server in connection.servers if "room" in server.known]
        return min(rooms, default=facts.context_length)

    @property
    def stop_ids(self) -> frozenset[int]:
        """End-of-sequence tokens of the model's generation configuration and of the tokenizer."""
        return self._open()[1].stop_ids

    @property
    def repeatable(self) -> bool:
        """What is computed in the same batch changes the last digits on a server."""
        return False

    def stream(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> Iterator[tuple[int, list[Completion]]]:
        """The position of each request and its completions, as they come.

        Raises:
            ConfigError, EngineError: as `generate`.
        """
        check_temperature(temperature)
        connection, facts = self._open()
        limits = token_limits(requests, context_length=self.context_length, vocabulary=facts.vocabulary)
        if logprobs and temperature not in (0.0, 1.0):
            self._check_tempered(temperature)
        self._look_again(connection)
        before = Counter(connection.trouble)
        waiting = [request.n for request in requests]
        parts: list[dict[int, list[Completion]]] = [{} for _ in requests]
        seen: set[str] = set()

        async def sampled(ask: Ask) -> list[Completion]:
            def read(answer: Any, server: Server) -> list[Completion]:
                found = read_sampled(
                    answer,
                    ask,
                    names=self._names(server),
                    stop_ids=facts.stop_ids,
                    vocabulary=facts.vocabulary,
                    logprobs=logprobs,
                    seen=seen,
                )
                return [facts.completion(ids, nats) for ids, nats in found]

            def body(server: Server) -> dict[str, Any]:
                return ask.body(self._asked_model(server), facts.stop_ids, temperature, logprobs)

            return await connection.ask("/v1/completions", body, read)

        for ask, completions in connection.results(self._asks(requests, limits), sampled) if requests else ():
            parts[ask.position][ask.first] = completions
            waiting[ask.position] -= ask.n
            if not waiting[ask.position]:
                found, parts[ask.position] = parts[ask.position], {}
                yield ask.position, [each for _, several in sorted(found.items()) for each in several]
        if new := connection.trouble - before:
            log.warning("Not answered as it should be, and asked again: %s.", counted(new))

    def _asks(self, requests: Sequence[Request], limits: Sequence[int]) -> Iterator[Ask]:
        for position, (request, limit) in enumerate(zip(requests, limits, strict=True)):
            for first in range(0, request.n, self.samples_per_request):
                n = min(self.samples_per_request, request.n - first)
                yield Ask(position, first, n, tuple(request.token_ids), limit, seed_of(request.seed, first))

    def _asked_model(self, server: Server) -> str:
        return self._weights.label if self._weights.adapter else str(server.known["model"])

    def _names(self, server: Server) -> set[str]:
        """What a server may call the model that was asked: adapters are told apart."""
        names: set[str] = server.known["names"]
        return {self._weights.label} if self._weights.adapter else names

    def _check_tempered(self, temperature: float) -> None:
        connection, _ = self._open()
        for server in connection.servers:
            if server.known.get("tempered") is False:
                raise EngineError(
                    f"{server.url} tells log-probabilities of temperature 1 where {temperature:g} is sampled at. Start "
                    "vLLM with --logprobs-mode processed_logprobs, or sample at temperature 1."
                )

    def logprobs(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        """(T,) nats for each continuation.

        By an echo; at temperatures other than 0 and 1, and where adapters may be, each token is a request of its own.

        Raises:
            ConfigError: the temperature is negative or not finite.
            EngineError: a context is empty, does not fit with its continuation or has unknown tokens, or the server
                does not tell.
        """
        check_temperature(temperature)
        connection, facts = self._open()
        check_continuations(contexts, continuations, context_length=self.context_length, vocabulary=facts.vocabulary)
        if temperature not in (0.0, 1.0):
            self._check_tempered(temperature)
        self._look_again(connection)
        echoes = temperature in (0.0, 1.0) and all(server.known.get("echoes", True) for server in connection.servers)

        async def scored(index: int) -> tuple[float, ...]:
            context, continuation = tuple(contexts[index]), tuple(continuations[index])
            if not continuation:
                return ()
            whole, begin = context + continuation, len(context)
            if not echoes:
                ends = range(begin, len(whole))
                return tuple([await self._next(whole[:end], whole[end], temperature or 1.0) for end in ends])
            if len(whole) < self.context_length:
                return await self._echoed(whole, begin)
            # A full context leaves no room for the token that an echo comes with.
            before = await self._echoed(whole[:-1], begin) if len(continuation) > 1 else ()
            return (*before, await self._next(whole[:-1], whole[-1], 1.0))

        found = dict(connection.results(range(len(contexts)), scored)) if contexts else {}
        return [found[index] for index in range(len(contexts))]

    async def _echoed(self, whole: tuple[int, ...], begin: int) -> tuple[float, ...]:
        """Nats of the tokens from `begin` on."""
        connection, _ = self._open()

        def read(answer: Any, server: Server) -> tuple[float, ...]:
            [choice] = choices_of(answer, self._names(server), 1)
            if choice.get("prompt_token_ids") != list(whole):
                raise Unusable("an answer to another prompt")
            return nats_of(choice, len(whole) - begin, begin)

        def body(server: Server) -> dict[str, Any]:
            more = {"echo": True, "logprobs": 1}
            return Ask(0, 0, 1, whole, 1, 0).body(self._asked_model(server), (), 1.0, False) | more

        return await connection.ask("/v1/completions", body, read)

    async def _next(self, before: tuple[int, ...], token: int, temperature: float) -> float:
        """Nats of one token, as the one that is sampled next."""
        connection, _ = self._open()

        def read(answer: Any, server: Server) -> float:
            [choice] = choices_of(answer, self._names(server), 1)
            told = told_nats(choice)
            if choice.get("prompt_token_ids") != list(before) or f"token_id:{token}" not in told:
                raise Unusable("no log-probability of the token that was asked for (logprob_token_ids)")
            return nat(told[f"token_id:{token}"])

        def body(server: Server) -> dict[str, Any]:
            more = {"logprobs": 1, "logprob_token_ids": [token], "return_tokens_as_token_ids": True}
            return Ask(0, 0, 1, before, 1, 0).body(self._asked_model(server), (), temperature, True) | more

        return await connection.ask("/v1/completions", body, read)

    def load(self, model: ModelRef) -> None:
        """Have every server sample from LoRA adapters, from a whole checkpoint, or from what it began with.

        The directory must be one that the servers can read.

        Raises:
            EngineError: there is no such model, or a server does not take it; or the engine is closed.
        """
        connection, _ = self._open()
        weights, old = Weights.of(model, self._base), self._weights
        self._weights, self._ref = weights, model
        for server in connection.servers:
            server.ready = False
        connection.run(connection.begin())
        if old.adapter and old != weights:
            self._unload(connection, old)

    def _unload(self, connection: Connection, weights: Weights) -> None:
        """Servers that are away forget adapters by themselves."""
        for server in connection.servers:
            with suppress(EngineError, Unanswered, Unusable):
                connection.run(unload_adapter(connection, server, weights.label))

    def close(self) -> None:
        """Let go of the connections; adapters that were loaded go, other weights stay."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._weights.adapter:
            self._unload(connection, self._weights)
        connection.close()
