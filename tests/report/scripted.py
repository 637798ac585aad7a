"""An engine that says what a test wants, and remembers what it was asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

from gpo.types import Completion, ModelRef, Request

ASKED: list[str] = []  # the prompts of all engines


class Letters:
    """One token a character; 0 ends a response."""

    eos_token_id: int | None = 0
    vocab_size = 0x110000

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(chr(token) for token in token_ids if token or not skip_special_tokens)


@dataclass
class ScriptedEngine:
    """Continuation after continuation takes the next of `answers`; `none` gives no answer, and `cut` never ends."""

    answers: tuple[str, ...] = ("42",)
    model: Any = None
    tokenizer: Letters = field(default_factory=Letters)
    context_length: int = 4096
    stop_ids: frozenset[int] = frozenset({0})
    repeatable: bool = False
    _turns: Any = field(default_factory=count, repr=False)

    @property
    def model_ref(self) -> ModelRef:
        return ModelRef(self.model, str(self.model))

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False
    ) -> list[list[Completion]]:
        ASKED.extend(self.tokenizer.decode(request.token_ids) for request in requests)
        return [[self._complete(request) for _ in range(request.n)] for request in requests]

    def _complete(self, request: Request) -> Completion:
        answer = self.answers[next(self._turns) % len(self.answers)]
        text = {"none": "I think.\nI do not know.", "cut": "I think. " * 1000}.get(
            answer, f"I think.\n\\boxed{{{answer}}}"
        )
        asked = self.tokenizer.decode(request.token_ids)
        if asked.endswith("I think.\n"):
            text = text.removeprefix("I think.\n")
        ids = (*self.tokenizer.encode(text), 0)[: request.max_tokens]
        stop = ids[-1] == 0
        return Completion(ids, text[: len(ids)], "stop" if stop else "length", (-0.5,) * len(ids))

    def logprobs(self, contexts: Any, continuations: Any, *, temperature: float = 1.0) -> list[tuple[float, ...]]:
        return [(-0.5,) * len(each) for each in continuations]

    def load(self, model: ModelRef) -> None:
        self.model = model.source

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
