"""Kinds of step: the first words of a step with what varies between questions masked."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORDS = 4  # of a step that make its kind
READ = 300  # characters of a step that are looked at
JOINED = "several steps at once"  # the kind of a block of steps that a search did not tell apart

_QUOTED = re.compile(r'"[^"\n]*"|“[^”\n]*”|`[^`\n]*`')
_NUMBER = re.compile(r"\d[\d.,:]*(?:am|pm|st|nd|rd|th|%)?(?<![.,:])|\d")
_TERM = r"[\s(]*-?\s*#[\s)]*"
_EXPRESSION = re.compile(rf"{_TERM}(?:[-+*/×·÷^,]{_TERM})+")
_BRACKETS = re.compile(r"(?<!\w)[\[\](){}<>](?:\s*[\[\](){}<>])*(?!\w)")
_CAPITAL = re.compile(r"(?<![\w'’])[A-Z][\w'’-]*")
_INSIDE = re.compile(r"(?<=[^\s.!?])\s+[\"'(]*([A-Z][\w'’-]*)")  # capitalised though no sentence begins there


class Kinds:
    """Tells the kind of a step by its text.

    Numbers and expressions become "#", quotations "…", brackets "[]", names "Aa". A name is a word that is capitalised
    inside a sentence somewhere in `texts`, so that the first word of a sentence stays what it is unless it is a name
    elsewhere.

    >>> Kinds(["Then Bob and Eve swap: Bob: 3.", "So it is 5 * (2 + 1) = 15."])("Bob and Eve swap: Bob: 12.")
    'Aa and Aa swap …'
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.names = {name for text in texts for name in _INSIDE.findall(text[:READ])}
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        if text not in self._known:
            self._known[text] = self._kind(text)
        return self._known[text]

    def _kind(self, text: str) -> str:
        masked = _QUOTED.sub("…", " ".join(text[:READ].split()))
        masked = _EXPRESSION.sub(" # ", _NUMBER.sub("#", masked))
        masked = _BRACKETS.sub("[]", masked)
        masked = _CAPITAL.sub(lambda word: "Aa" if word[0] in self.names else word[0], masked)
        words = re.sub(r"\bAa(?: Aa)+\b", "Aa", masked).split()
        if not words:
            return "(blank)"
        return " ".join(words[:WORDS]).rstrip(",.:;") + (" …" if len(words) > WORDS else "")
