"""What a model thinks before it answers: where its thought begins and ends, and its turn as it is graded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

THINK, ANSWER = "<think>", "</think>"  # in texts that are graded, whatever a model writes

# What begins a thought, what tells the answer from it, and what a model writes to end it.
MARKS = (
    (THINK, ANSWER, f"{ANSWER}\n\n"),
    (  # gpt-oss
        *("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("<|channel>thought", "<channel|>", "<channel|>"),  # Gemma 4
    ("[THINK]", "[/THINK]", "[/THINK]"),  # Magistral
)
TAIL = 16  # tokens of a prompt that may begin a thought


def visible(text: str) -> bool:
    """Whether there is anything in it but white space and the mark that begins a thought: no step is without it."""
    return bool(text.replace(THINK, "").strip())


@dataclass(frozen=True)
class Thought:
    """The thought of a model with this tokenizer, told by its chat template; of other models, none."""

    tokenizer: Any

    @cached_property
    def _marks(self) -> tuple[str, str, str] | None:
        template = str(getattr(self.tokenizer, "chat_template", None) or "")
        return next((marks for marks in MARKS if marks[0] in template or marks[1] in template), None)

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        """What is in no text, where the marks are; None where they are in texts."""
        assert self._marks is not None, "a model that thinks has marks"
        ids = self.tokenizer.encode("".join(self._marks[:2]), add_special_tokens=False)
        if all(mark in self.tokenizer.decode(ids, skip_special_tokens=True) for mark in self._marks[:2]):
            return None
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        special = {token.content for token in added if token.special}
        return re.compile("|".join(map(re.escape, special - {THINK, ANSWER})))

    @cached_property
    def _ids(self) -> tuple[list[int], list[int]] | None:
        """The token ids of both marks; None where they may be others beside other text."""
        assert self._marks is not None, "a model that thinks has marks"
        added = set(getattr(self.tokenizer, "get_added_vocab", dict)().values())
        begin, end = (self.tokenizer.encode(mark, add_special_tokens=False) for mark in self._marks[:2])
        whole = all(ids and {ids[0], ids[-1]} <= added for ids in (begin, end))
        return (begin, end) if whole else None

    def begun(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends with the beginning of a thought, so that a response goes on in it."""
        if self._marks is None:
            return False
        tail: str = self.tokenizer.decode(prompt_ids[-TAIL:], skip_special_tokens=False)
        return tail.rstrip().endswith(self._marks[0])

    def turn(self, prompt_ids: Sequence[int], response_ids: Sequence[int], text: str | None = None) -> str:
        """The text of a model's whole turn, with `<think>` and `</think>` around what it thinks.

        Args:
            text: of the response without special tokens, where it is known.
        """
        if self._marks is not None and self._special is not None:
            raw: str = self.tokenizer.decode(response_ids, skip_special_tokens=False)
            text = self._special.sub("", raw.replace(self._marks[0], THINK).replace(self._marks[1], ANSWER))
        elif text is None:
            text = self.tokenizer.decode(response_ids, skip_special_tokens=True)
        return f"{THINK}\n{text}" if self.begun(prompt_ids) else text

    def end(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str:
        """What a model writes to end the thought that it is in behind a prefix; empty where it is in none."""
        if self._marks is None:
            return ""
        if self._ids is None:
            inside = THINK in self.turn(prompt_ids, response_ids).rpartition(ANSWER)[2]
        else:
            begun, ended = (_last(response_ids, mark) for mark in self._ids)
            inside = begun > ended or (ended < 0 and self.begun(prompt_ids))
        return self._marks[2] if inside else ""


def _last(ids: Sequence[int], mark: Sequence[int]) -> int:
    """Where a sequence of ids begins for the last time; -1 if it does not."""
    if mark[0] not in ids:
        return -1
    wanted, size = tuple(mark), len(mark)
    return next((at for at in range(len(ids) - size, -1, -1) if tuple(ids[at : at + size]) == wanted), -1)
