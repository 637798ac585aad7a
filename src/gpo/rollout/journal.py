"""An engine whose answers survive a kill within a chunk.

A run keeps what it samples in chunks of some hundred rollouts. On a slow model one of them takes long, so the engine is
asked in pieces of some seconds, and every piece is appended to a journal before the next one is asked for. After a kill
the same chunk asks for the same rollouts, and those in the journal are not sampled again; once the chunk is written the
journal goes. How large a piece is, a run measures once and keeps: what is asked for together can change the last digit
of a log-probability, and shall be the same after a kill. An engine that tells its answers one by one is asked for all
at once, and they are kept as they come.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import log2
from pathlib import Path
from typing import Any

from gpo.contracts import Engine, RemoteEngine
from gpo.errors import DataError, naming
from gpo.rollout.answers import check_answers
from gpo.storage.codec import from_json, to_json
from gpo.storage.disk import told
from gpo.storage.files import append, read_json, refuse_link, remove, write_json
from gpo.types import Completion, ModelRef, Request

TOGETHER = 1.0  # seconds of answers that are written together where they come one by one


def together(
    answers: Iterable[tuple[int, list[Completion]]],
) -> Iterator[tuple[dict[int, list[Completion]], float]]:
    """Answers of about a second, and the seconds; what has come before a failure comes before it."""
    found: dict[int, list[Completion]] = {}
    began = time.monotonic()
    failure: BaseException | None = None
    try:
        for position, answer in answers:
            found[position] = answer
            if (took := time.monotonic() - began) > TOGETHER:
                yield found, took
                found, began = {}, time.monotonic()
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    if found:
        yield found, time.monotonic() - began
    if failure is not None:
        raise failure


@dataclass
class Journal(Engine):
    """Asks `engine` in pieces of about `seconds`, and keeps the answers in the file `path` until `clear`.

    How large a piece is stands in `size_path` once the first one has told how fast the engine is.
    """

    engine: Engine
    path: Path
    size_path: Path
    seconds: float
    on_piece: Callable[[int, int, int, float], None]  # rollouts done and wanted; tokens and seconds of the piece
    _known: dict[str, list[Completion]] | None = field(default=None, init=False)
    _size: tuple[int, str] | None = field(default=None, init=False)

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> list[list[Completion]]:
        known = self._read()
        keys = [self._key(request, temperature, logprobs) for request in requests]
        todo = [i for i, key in enumerate(keys) if key not in known]
        left, wanted = sum(requests[i].n for i in todo), sum(request.n for request in requests)
        for piece, took in self._answers(requests, keys, todo, temperature, logprobs):
            left -= sum(requests[i].n for i in piece)
            tokens = sum(len(completion.token_ids) for answer in piece.values() for completion in answer)
            self._append({keys[i]: answer for i, answer in piece.items()})
            known |= {keys[i]: answer for i, answer in piece.items()}
            self.on_piece(wanted - left, wanted, tokens, max(took, 1e-6))
        return [known[key] for key in keys]

    def _answers(
        self, requests: Sequence[Request], keys: Sequence[str], todo: list[int], temperature: float, logprobs: bool
    ) -> Iterator[tuple[dict[int, list[Completion]], float]]:
        """The answers of each piece by the positions of their requests, and the seconds that it took."""
        if isinstance(self.engine, RemoteEngine):
            coming = self.engine.stream([requests[i] for i in todo], temperature=temperature, logprobs=logprobs)
            for found, took in together((todo[position], answer) for position, answer in coming):
                check_answers([requests[i] for i in found], list(found.values()), self.engine)
                yield found, took
            return
        while todo:
            size, probe = self._read_size()
            count = 1 if keys[todo[0]] == probe else max(1, size // requests[todo[0]].n)
            piece, todo = todo[:count], todo[count:]
            began = time.monotonic()
            asked = [requests[i] for i in piece]
            with naming(f"The engine {type(self.engine).__name__}"):
                answers = self.engine.generate(asked, temperature=temperature, logprobs=logprobs)
                check_answers(asked, answers, self.engine)  # what cannot be is not kept
            took = max(time.monotonic() - began, 1e-6)
            if not probe:
                self._write_size(self.seconds / took * sum(request.n for request in asked), keys[piece[0]])
            yield dict(zip(piece, answers, strict=True)), took

    def clear(self) -> None:
        """What it holds is kept elsewhere."""
        remove(self.path)
        self._known = None

    def _key(self, request: Request, temperature: float, logprobs: bool) -> str:
        asked = [self.engine.model_ref.name, temperature, logprobs, *(to_json(request).values())]
        return blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()

    def _read_size(self) -> tuple[int, str]:
        """Rollouts of a piece, and the request that told it, which is a piece of its own for ever."""
        if self._size is None and self.size_path.exists():
            known = read_json(self.size_path)
            self._size = int(known["rollouts"]), str(known["probe"])
        return self._size or (1, "")

    def _write_size(self, rollouts: float, probe: str) -> None:
        """A power of two, so that two runs on one machine mostly agree."""
        self._size = 1 << int(log2(max(1.0, min(rollouts, 2.0**30)))), probe
        write_json(self.size_path, {"rollouts": self._size[0], "probe": probe})

    def _read(self) -> dict[str, list[Completion]]:
        if self._known is None:
            refuse_link(self.path)
            self._known, whole = {}, 0
            lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
            for line in lines:
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = [from_json(Completion, each) for each in row["completions"]]
                except (ValueError, KeyError, TypeError, DataError):
                    break
                whole += len(line) + 1
            if self.path.exists():
                with told(self.path):
                    os.truncate(self.path, whole)  # what a kill left of a line is asked for again
        return self._known

    def _append(self, answers: dict[str, list[Completion]]) -> None:
        rows = [json.dumps({"key": key, "completions": to_json(answer)}) + "\n" for key, answer in answers.items()]
        append(self.path, "".join(rows).encode())

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    @property
    def model_ref(self) -> ModelRef:
        return self.engine.model_ref

    @property
    def context_length(self) -> int:
        return self.engine.context_length

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.engine.stop_ids

    @property
    def repeatable(self) -> bool:
        return self.engine.repeatable

    def logprobs(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        return self.engine.logprobs(contexts, continuations, temperature=temperature)

    def load(self, model: ModelRef) -> None:
        self.engine.load(model)

    def close(self) -> None:
        self.engine.close()
