"""Texts made fit to be shown: nothing invisible, nothing that steers a terminal or turns text around.

Where a terminal or a file cannot hold a character, another one stands for it.
"""

from __future__ import annotations

import codecs
import unicodedata

from markupsafe import escape

PLAIN = {  # ASCII for our own signs, as wide as these, so that tables stay tables
    **dict(zip("▲▼·−–◆●├┤─✓✗⟨⟩’", "^v.--*o||-+x<>'", strict=True)),
    "\u00a0": " ",
    "…": "...",
    "→": "->",
}
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


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding does not have: ASCII for our signs, else their codes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(each) or each.encode("ascii", "backslashreplace").decode() for each in lost), error.end


codecs.register_error("gpo", _plain)


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


def counted(number: int, what: str) -> str:
    """Such as `1 sample` or `1,204 samples`; an irregular plural is given too: `trajectory/trajectories`."""
    one, _, many = what.partition("/")
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def one_line(text: str, size: int) -> str:
    """At most `size` characters of `visible(text)` in one line."""
    line = " ".join(visible(text[: 4 * size]).split())
    return line if len(line) <= size and len(text) <= 4 * size else line[: size - 1] + "…"
