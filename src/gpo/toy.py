"""A toy decision process whose values are known exactly: the test double of every estimator.

A response is K decision lines and an answer line. With two filler tokens a line, `padding=2`:

    prompt   "0\n"                  (the number of the process)
    response "b..\na..\nY<eos>"     (decisions b and a, then the answer Y, which is right, or N)

In state s before decision k the policy takes choice c with probability `probabilities[k][s][c]` and goes to state
`successors[k][s][c]`; the last state decides the answer. A tree is a process with one state for every path.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from math import inf, log
from pathlib import Path
from typing import Any, Self

import numpy as np

from gpo.engines.requests import check_continuations, check_temperature, token_limits
from gpo.errors import ConfigError, DataError, EngineError
from gpo.types import Completion, Message, ModelRef, Problem, Request, Score, Split

VOCABULARY = ("", "\n", ".", "Y", "N", *"0123456789", *"abcdefghijklmnopqrstuvwxyz")
EOS, NEWLINE, FILLER, YES, NO = range(5)
CHOICE_A = VOCABULARY.index("a")

Cursor = tuple[int, int, int]  # decisions taken, state, column in the line (0: a line begins)
ANSWERED, ENDED = -1, -2  # columns after the answer and after the end of sequence


@dataclass(frozen=True)
class ChainTokenizer:
    """One token a character; the end-of-sequence token is the empty text."""

    eos_token_id: int | None = EOS

    def __len__(self) -> int:
        return len(VOCABULARY)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        unknown = sorted(set(text).difference(VOCABULARY))
        if unknown:
            raise DataError(
                f"The toy tokenizer has no token for {unknown}; its characters are {''.join(VOCABULARY)!r}."
            )
        return [VOCABULARY.index(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(VOCABULARY[token] for token in token_ids)


@dataclass(frozen=True)
class Process:
    """A decision process with K decisions; the lists of states may differ in length from decision to decision."""

    probabilities: tuple[tuple[tuple[float, ...], ...], ...]  # (K, states, choices), each row sums to 1
    successors: tuple[tuple[tuple[int, ...], ...], ...]  # (K, states, choices) states before the next decision
    right: tuple[bool, ...]  # (states,) whether a last state answers right

    def __post_init__(self) -> None:
        for decision, rows in enumerate(self.probabilities):
            for state, row in enumerate(rows):
                if len(row) > len(VOCABULARY) - CHOICE_A or min(row) < 0 or abs(sum(row) - 1) > 1e-9:
                    raise ConfigError(
                        f"Probabilities of decision {decision} in state {state} are {row}; "
                        f"expected at most {len(VOCABULARY) - CHOICE_A} probabilities that sum to 1."
                    )

    @cached_property
    def values(self) -> tuple[tuple[float, ...], ...]:
        """(K + 1, states) success probability of each state, by backward induction."""
        levels = [tuple(float(right) for right in self.right)]
        for rows, targets in zip(reversed(self.probabilities), reversed(self.successors), strict=True):
            after = levels[-1]
            levels.append(
                tuple(
                    sum(p * after[target] for p, target in zip(row, target_row, strict=True))
                    for row, target_row in zip(rows, targets, strict=True)
                )
            )
        return tuple(reversed(levels))


Place = tuple[Process, Cursor]


def random_process(
    seed: int, *, decisions: int = 6, states: int = 3, choices: int = 3, concentration: float = 1.0
) -> Process:
    """A process with Dirichlet(`concentration`) probabilities and uniform successors; half the last states are right.

    It starts in state 0. A lower concentration makes surer decisions.
    """
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(choices, concentration), size=(decisions, states))
    successors = rng.integers(states, size=(decisions, states, choices))
    right = rng.permutation(states) < (states + 1) // 2
    return Process(*(_frozen(each.tolist()) for each in (probabilities, successors, right)))


def _frozen(value: Any) -> Any:
    """Lists within lists as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@dataclass
class ChainEngine:
    """Samples from toy processes; problem i is process i. A checkpoint is a directory that `save` wrote."""

    processes: tuple[Process, ...] = field(default_factory=lambda: tuple(map(random_process, range(8))))
    padding: int = 0  # filler tokens after each decision, without effect on the value
    context_length: int = 4096
    tokenizer: ChainTokenizer = field(default_factory=ChainTokenizer)
    _ref: ModelRef | None = field(default=None, init=False, repr=False, compare=False)  # None: nothing was loaded
    _closed: bool = field(default=False, init=False, repr=False, compare=False)

    @property
    def model_ref(self) -> ModelRef:
        return self._ref or ModelRef(self.processes, "toy processes")

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset([EOS])

    @property
    def repeatable(self) -> bool:
        return True

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> list[list[Completion]]:
        """Continuations whose random numbers depend on request seed, continuation index and token position only.

        Raises:
            ConfigError: the temperature is negative or not finite.
            EngineError: a request cannot be served, or the engine is closed.
            DataError: no process can produce a request's tokens.
        """
        self._check(temperature)
        limits = token_limits(requests, context_length=self.context_length, vocabulary=len(VOCABULARY))
        answers: list[list[Completion]] = []
        for request, limit in zip(requests, limits, strict=True):
            place = self._follow(request.token_ids)
            answers.append([self._complete(request, i, limit, place, temperature, logprobs) for i in range(request.n)])
        return answers

    def logprobs(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        """(T,) nats for each continuation, exact; -inf from the first token on that the process cannot produce.

        Raises:
            ConfigError, EngineError, DataError: as `generate`.
        """
        self._check(temperature)
        check_continuations(contexts, continuations, context_length=self.context_length, vocabulary=len(VOCABULARY))
        found = []
        for context, continuation in zip(contexts, continuations, strict=True):
            process, start = self._follow(context)
            cursor: Cursor | None = start
            nats: list[float] = []
            for token in continuation:
                options = self._options(process, cursor) if cursor is not None else []
                weights = tempered([p for _, p, _ in options], temperature or 1.0)
                place = next((place for place, option in enumerate(options) if option[0] == token), None)
                nats.append(-inf if place is None else log(weights[place] / sum(weights)))
                cursor = None if place is None else options[place][2]
            found.append(tuple(nats))
        return found

    def value(self, token_ids: Sequence[int]) -> float:
        """The exact success probability at temperature 1 after a prompt and any part of a response.

        Raises:
            DataError: no process can produce these tokens.
        """
        process, (decision, state, _) = self._follow(token_ids)
        return process.values[decision][state]

    def save(self, path: Path) -> None:
        """Writes the processes into directory `path`."""
        path.mkdir(parents=True, exist_ok=True)
        (path / "chain.json").write_text(json.dumps([asdict(process) for process in self.processes]))

    def load(self, model: ModelRef) -> None:
        """Replaces the processes by those of a directory written by `save`, or by those in memory.

        Raises:
            EngineError: there are none, or the engine is closed.
        """
        self._check(1.0)
        in_memory = not isinstance(model.source, str | Path)
        self.processes = tuple(model.source) if in_memory else read_processes(Path(model.source) / "chain.json")
        self._ref = model

    def close(self) -> None:
        """Nothing may be asked after it."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, temperature: float) -> None:
        if self._closed:
            raise EngineError("The engine is closed. Make a new one.")
        check_temperature(temperature)

    def _options(self, process: Process, cursor: Cursor) -> list[tuple[int, float, Cursor]]:
        """(token, probability, cursor after it) of every possible next token; none at the end."""
        decision, state, column = cursor
        if column == ENDED:
            return []
        if column == ANSWERED:
            return [(EOS, 1.0, (decision, state, ENDED))]
        if column > self.padding:
            return [(NEWLINE, 1.0, (decision, state, 0))]
        if column:
            return [(FILLER, 1.0, (decision, state, column + 1))]
        if decision == len(process.probabilities):
            return [(YES if process.right[state] else NO, 1.0, (decision, state, ANSWERED))]
        row = zip(process.probabilities[decision][state], process.successors[decision][state], strict=True)
        return [(CHOICE_A + choice, p, (decision + 1, target, 1)) for choice, (p, target) in enumerate(row) if p > 0]

    def _follow(self, token_ids: Sequence[int]) -> tuple[Process, Cursor]:
        """The process of a prompt and where the response stands."""
        prompt, newline, _ = self.tokenizer.decode(token_ids).partition("\n")
        if not newline or not prompt.isdecimal() or int(prompt) >= len(self.processes):
            raise DataError(
                f"Got the prompt {prompt!r}; expected the number of one of {len(self.processes)} toy processes "
                "and a newline."
            )
        process = self.processes[int(prompt)]
        cursor = (0, 0, 0)
        for token in token_ids[len(prompt) + 1 :]:
            after = [target for option, _, target in self._options(process, cursor) if option == token]
            if not after:
                raise DataError(f"Toy process {prompt} cannot produce {self.tokenizer.decode(token_ids)!r}.")
            cursor = after[0]
        return process, cursor

    def _complete(
        self, request: Request, index: int, limit: int, place: Place, temperature: float, logprobs: bool
    ) -> Completion:
        process, cursor = place
        tokens: list[int] = []
        nats: list[float] = []
        while len(tokens) < limit and (options := self._options(process, cursor)):
            weights = tempered([p for _, p, _ in options], temperature or 1.0)
            if temperature == 0:
                best = max(range(len(options)), key=lambda i: options[i][1])
            else:
                position = len(request.token_ids) + len(tokens)
                point = _uniform(request.seed, index, position) * sum(weights) if len(options) > 1 else 0.0
                best = min(bisect_right(list(accumulate(weights)), point), len(options) - 1)
            chosen, chosen_p = options[best], weights[best] / sum(weights)
            tokens.append(chosen[0])
            nats.append(log(chosen_p))
            cursor = chosen[2]
        return Completion(
            token_ids=tuple(tokens),
            text=self.tokenizer.decode(tokens),
            finish_reason="stop" if cursor[2] == ENDED else "length",
            logprobs=tuple(nats) if logprobs else None,
        )


def tempered(probabilities: Sequence[float], temperature: float) -> list[float]:
    """Weights that are proportional to the probabilities at a temperature above 0."""
    return [p ** (1 / temperature) for p in probabilities]


def read_processes(file: Path) -> tuple[Process, ...]:
    """The processes that `ChainEngine.save` wrote.

    Raises:
        EngineError: there are none.
    """
    if not file.is_file():
        raise EngineError(f"No toy processes at {file}; expected a directory written by ChainEngine.save.")
    try:
        rows = [
            [item[name] for name in ("probabilities", "successors", "right")] for item in json.loads(file.read_text())
        ]
        return tuple(Process(*map(_frozen, row)) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{file} holds no toy processes ({error}); expected what ChainEngine.save writes.") from error


def _uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) from a counter, so that it does not depend on the order of work."""
    digest = blake2b(f"{seed}|{index}|{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


@dataclass(frozen=True)
class ChainTask:
    """The questions of a `ChainEngine`: problem i asks for process i. All splits are the same."""

    size: int = 8

    def problems(self, split: Split) -> Sequence[Problem]:
        return [Problem(str(number), str(number), "Y") for number in range(self.size)]

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        answer = text.rpartition("\n")[2]
        if answer not in ("Y", "N"):
            return Score(0.0, "ungradable")
        return Score(1.0, "right", answer) if answer == problem.answer else Score(0.0, "wrong", answer)
