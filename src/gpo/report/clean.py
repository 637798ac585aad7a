"""What a model wrote, made fit to be shown: nothing invisible, nothing that steers a terminal or turns text around."""

from __future__ import annotations

import unicodedata

from markupsafe import escape

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})  # categories without a shape of their own


def visible(text: str) -> str:
    """The text with every control and format character, such as escape or right-to-left override, as its code in ⟨⟩.

    Line feeds stay, and tabs are spaces. Joiners of emoji and scripts are spelled out too.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text.replace("\r\n", "\n").replace("\t", "    "))


def _shown(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in HIDDEN:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def html_size(text: str) -> int:
    """Bytes of a text as HTML."""
    return len(str(escape(text)).encode())


def clip(text: str, size: int) -> str:
    """At most `size` bytes of HTML: the beginning of `visible(text)`, and how much of it is missing."""
    begin = visible(text[:size])
    if len(text) <= size and html_size(begin) <= size:
        return begin
    kept, used = len(begin), 0
    for i, character in enumerate(begin):
        used += html_size(character)
        if used > size:
            kept = i
            break
    return f"{begin[:kept]} … ({len(text):,} characters, cut)"


def one_line(text: str, size: int) -> str:
    """At most `size` characters of `visible(text)` in one line."""
    line = " ".join(visible(text[: 4 * size]).split())
    return line if len(line) <= size and len(text) <= 4 * size else line[: size - 1] + "…"
