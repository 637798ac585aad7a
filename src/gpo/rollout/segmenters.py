"""Segmenters cut a response into steps.

A segmenter maps the token ids of a response to `step_ends` (K,): increasing token offsets, the last of which is the
length of the response, so that the steps joined give the response back. Text is looked at token by token and never
tokenised again. A step ends after the token that holds the end of its separator; an end-of-sequence token belongs to
the last step; text without a visible character makes no step of its own, nor does the mark that begins a thought
(`<think>`). An empty response has no steps: ().
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

from gpo.errors import ConfigError
from gpo.rollout.thought import visible

SENTENCE = re.compile(r"""[.!?]['")\]]*(?=\s)|\n""")
_PIECES: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()


class Segmenter(Protocol):
    """Cuts a response into steps."""

    # One that reads `logprobs` has a field `needs_logprobs` that is true; a sampler asks the engine for them then.

    def __call__(
        self, token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None = None
    ) -> tuple[int, ...]: ...


def pieces(token_ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token, special tokens as "".

    A token that holds a part of a multi-byte character has a replacement character in its place.
    """
    try:
        cache = _PIECES.setdefault(tokenizer, {})
    except TypeError:  # a tokenizer that cannot be hashed
        cache = {}
    for token in set(token_ids).difference(cache):
        # Decoding a token after itself keeps the leading space that some tokenizers drop at the start of a text.
        once = tokenizer.decode([token], skip_special_tokens=True)
        cache[token] = tokenizer.decode([token, token], skip_special_tokens=True)[len(once) :]
    return [cache[token] for token in token_ids]


def merge_short(ends: Sequence[int], min_step_tokens: int) -> tuple[int, ...]:
    """Joins steps until each has `min_step_tokens`; what is left over at the end joins the step before."""
    kept: list[int] = []
    begin = 0
    for end in ends:
        if end - begin >= min_step_tokens:
            kept.append(end)
            begin = end
    if ends and kept and kept[-1] != ends[-1]:
        kept[-1] = ends[-1]
    return tuple(kept) if kept else tuple(ends[-1:])


def spread(ends: Sequence[int], max_steps: int | None) -> tuple[int, ...]:
    """At most `max_steps` ends, evenly spread by index; the last one always stays."""
    if max_steps is None or len(ends) <= max_steps:
        return tuple(ends)
    return tuple(ends[(step + 1) * len(ends) // max_steps - 1] for step in range(max_steps))


@dataclass(frozen=True)
class _Limits:
    """The limits that every segmenter has."""

    needs_logprobs: ClassVar[bool] = False
    min_step_tokens: int = 1  # shorter steps join the next one
    max_steps: int | None = None  # more steps than this are joined evenly

    def __post_init__(self) -> None:
        if self.min_step_tokens < 1 or (self.max_steps is not None and self.max_steps < 1):
            raise ConfigError(
                f"{type(self).__name__} got min_step_tokens={self.min_step_tokens}, max_steps={self.max_steps}; "
                "both must be at least 1 (max_steps None means no limit)."
            )

    def __call__(
        self, token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None = None
    ) -> tuple[int, ...]:
        if not token_ids:
            return ()
        ends = [*self._cuts(token_ids, tokenizer, logprobs), len(token_ids)]
        return spread(merge_short(ends, self.min_step_tokens), self.max_steps)

    def _cuts(self, token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None) -> list[int]:
        """The ends of all steps but the last one, before the limits."""
        raise NotImplementedError


@dataclass(frozen=True)
class _TextSegmenter(_Limits):
    """A step ends where a match of `separator` ends, if `_ends_step` says so."""

    separator: ClassVar[re.Pattern[str]]

    def _ends_step(self, match: re.Match[str], tokens: int) -> bool:
        """Whether a match ends the step, which has that many tokens then."""
        return True

    def _cuts(self, token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None) -> list[int]:
        texts = pieces(token_ids, tokenizer)
        text = "".join(texts)
        character_ends = list(accumulate(map(len, texts)))
        ends: list[int] = []
        begin = first = 0  # of the step: character, token
        for match in self.separator.finditer(text):
            if match.end() <= begin:  # inside the last token of the step before
                continue
            token = bisect_right(character_ends, match.end() - 1)
            if not self._ends_step(match, token + 1 - first):
                continue
            end, first = character_ends[token], token + 1
            if visible(text[begin:end]):
                ends.append(token + 1)
            elif ends:  # a blank piece joins the step before it, or at the start of the response the one after it
                ends[-1] = token + 1
            begin = end
        if ends and not visible(text[begin:]):
            ends.pop()
        return ends


@dataclass(frozen=True)
class Newline(_TextSegmenter):
    r"""A step is a line, or a long enough part of one that ends with a sentence.

    Whether a step ends depends on it and on the character behind it only. Source: GPO, section 5 (steps end at "\n").
    """

    separator: ClassVar[re.Pattern[str]] = SENTENCE
    sentence_tokens: int | None = None  # a sentence ends a step of at least as many tokens; None: only a line does

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sentence_tokens is not None and self.sentence_tokens < 1:
            raise ConfigError(f"Newline got sentence_tokens={self.sentence_tokens}; expected at least 1, or none.")

    def _ends_step(self, match: re.Match[str], tokens: int) -> bool:
        return match.group() == "\n" or (self.sentence_tokens is not None and tokens >= self.sentence_tokens)


@dataclass(frozen=True)
class Authors(_TextSegmenter):
    r"""Splits at "\n", "\n\n", ".\n" and ".\n\n", joins steps under 30 tokens, keeps at most 30 steps.

    Source: the development code of GPO's authors. Where that drops what is beyond the limit, steps are joined here.
    """

    min_step_tokens: int = 30
    max_steps: int | None = 30
    separator: ClassVar[re.Pattern[str]] = re.compile(r"\.?\n{1,2}")


@dataclass(frozen=True)
class Sentence(_TextSegmenter):
    """A step ends at a newline, or after ".", "!" or "?" (and closing quotes or brackets) before a space."""

    separator: ClassVar[re.Pattern[str]] = SENTENCE


@dataclass(frozen=True)
class BlankLine(_TextSegmenter):
    """A step is a paragraph."""

    separator: ClassVar[re.Pattern[str]] = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True)
class FixedTokens(_Limits):
    """Steps of `size` tokens; the last one may be shorter."""

    size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ConfigError(f"FixedTokens got size={self.size}; expected at least 1 token.")

    def _cuts(self, token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None) -> list[int]:
        return list(range(self.size, len(token_ids), self.size))


@dataclass(frozen=True)
class LowProbability(_Limits):
    """A step starts at every `every`-th cut point, a token that was sampled with a low probability.

    Source: SPO-chain (arXiv 2505.23564), which cuts by the same count. A cut point opens a step here, so that the
    advantage of a step is that of the decisions in it. A token whose log-probability is NaN is no cut point; the tokens
    of a kept prefix are such.
    """

    needs_logprobs: ClassVar[bool] = True
    probability: float = 0.9  # a cut point is less probable than this
    every: int = 5  # cut points in a step

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.probability <= 1 or self.every < 1:
            raise ConfigError(
                f"LowProbability got probability={self.probability}, every={self.every}; "
                "expected a probability in (0, 1] and at least 1 cut point in a step."
            )

    def _cuts(self, token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None) -> list[int]:
        if logprobs is None:
            raise ConfigError("LowProbability needs the log-probabilities of the tokens; sample with logprobs=True.")
        cuts = [i for i, value in enumerate(logprobs) if exp(value) < self.probability]
        return cuts[self.every :: self.every]
