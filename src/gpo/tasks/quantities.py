r"""The exact value of a short answer: a rational number, or a multiple of a power of pi, with its unit.

Read are integers, decimals, a/b, \frac{a}{b}, mixed numbers (1 1/2, 1\frac{1}{2}), 1.5e-3, 1.5 \times 10^{-3}, 3\pi/4,
thousands (1,000), scale words (5 million) and units behind them. What has two readings has no value here: 2 3,
1/2\pi, an improper mixed number such as 1 5/2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from gpo.tasks.latex import normal_form, spell

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_TIMES = r"(?:\\times|\\cdot|\*)"
_TEN = r"(?:\\times|\\cdot|\*|x)10(?:\^|\*\*)(?:\{([-+]?\d{1,3})\}|([-+]?\d{1,3})(?!\d))"
_PI = r"\\pi(?:\^(?:\{\d\}|\d))?"
_FACTOR = re.compile(rf"([-+]?)(?:({_DECIMAL})(?:[eE]([-+]?\d{{1,3}})(?!\d)|{_TEN})?)?{_TIMES}?({_PI})?")
_MIXED = re.compile(rf"(\d+)(?: (\d+)/(\d+)|\\frac\{{(\d+)\}}\{{(\d+)\}})({_PI})?")
_FRACTION = re.compile(rf"\\frac\{{([^{{}}]+(?:\{{\d\}})?)\}}\{{([^{{}}]+(?:\{{\d\}})?)\}}{_TIMES}?({_PI})?")
_QUOTIENT = re.compile(rf"([^/()]+)/(?:({_DECIMAL}|{_PI})|\(([^/()]+)\))")
_BRACKETED = re.compile(rf"\(([^()]+)\)({_PI})?")

_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALE = re.compile(rf"\s+({'|'.join(_SCALES)})s?\b", re.IGNORECASE)
# Words behind a number that make another one of it, or none.
CHANGING = re.compile(rf"\b(?:squared|cubed|factorial|less|more|fewer|least|most|not|half|{'|'.join(_SCALES)})\b")
_RELATION = re.compile(r"\\(?:leq?|geq?|neq?|lt|gt)(?![a-z])|[<>]")
_VARIABLE = re.compile(rf"[-+]?{_DECIMAL}[A-Za-z]+")  # Math-Verify takes 5t for 5 tons
_CURRENCY = re.compile(r"\s*(?P<sign>[-+]?)\s*(?P<mark>\\\$|€|£)")
_CURRENCIES = {"\\$": "dollar", "€": "euro", "£": "pound sterling"}
_UNIT = re.compile(
    r"(?P<sign>\\?%|\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?P<scale>[CFK]\b)?)\s*$"
    r"|(?:\\(?:text|mbox|textrm|mathrm)\s*\{(?P<text>[^{}\d]*)\}|(?<=[\s\d}])(?P<words>[A-Za-z][A-Za-z./ -]*))"
    r"\s*(?:\^\s*\{?\s*(?P<power>[23])\s*\}?)?\s*$"
)
_SPELLINGS = """
mm millimeter millimetre|cm centimeter centimetre|m meter metre|km kilometer kilometre|inch inches in|foot feet ft
yard yd|mile mi|mg milligram|g gram|kg kilogram|pound lb|ounce oz|ton|ml milliliter millilitre|l liter litre|gallon gal
second sec s|minute min|hour hr h|day|week|month|year|dollar usd|cent|euro eur|percent|degree deg|radian rad|unit
"""
_NAMES = {
    word: line.split()[0]
    for line in re.split(r"[|\n]", _SPELLINGS.strip())
    for spelling in line.split()
    for word in (spelling, f"{spelling}s")
}

OTHER = "other"  # things that are counted, such as apples
_MOST_WORDS = 3  # of them; more make a sentence


@dataclass(frozen=True, slots=True)
class Quantity:
    """value * pi^pi, in units of `unit`."""

    value: Fraction
    pi: int = 0
    unit: str = ""  # such as "cm^2", "percent", "dollar", "degree"; OTHER words are no part of the value


def quantity(latex: str) -> Quantity | None:
    """What a whole answer says, None if it is anything else than one quantity."""
    text = re.sub(r"(?<!\\)\$|\\[()\[\]]", " ", spell(latex)).strip().rstrip(".")
    currency = _CURRENCY.match(text)
    unit, scale = "", 1
    if currency:
        unit, text = _CURRENCIES[currency["mark"]], currency["sign"] + text[currency.end() :]
    found = _UNIT.search(text)
    if found:
        named = _named(found)
        if named is None or (unit and named[0] not in ("", OTHER, unit)):
            return None
        unit, scale, text = unit or named[0], named[1], text[: found.start()]
    read = _read(normal_form(text))
    if read is None:
        return None
    value, pi = read
    return Quantity(value * scale, pi if value else 0, unit)


def exact_number(latex: str) -> Fraction | None:
    r"""The value of a number without a unit (but for degrees and dollars); None if it is anything else."""
    found = quantity(latex)
    return found.value if found and not found.pi and found.unit in ("", "degree", "dollar") else None


def same_quantity(a: Quantity, b: Quantity) -> bool:
    """Whether two quantities are equal, where a unit may be left out.

    Without its sign, 50% is 50 or 1/2: what is meant depends on the question.
    """
    if a.pi != b.pi or len({a.unit, b.unit} - {"", OTHER}) > 1:
        return False
    percents = [q.unit == "percent" for q in (a, b)]
    if percents[0] != percents[1]:
        of_hundred, plain = (a, b) if percents[0] else (b, a)
        return plain.value in (of_hundred.value, of_hundred.value / 100)
    return a.value == b.value


def spelled(found: Quantity) -> str:
    """LaTeX of the value alone."""
    power = f" \\pi^{{{found.pi}}}" if found.pi else ""
    return f"{'-' if found.value < 0 else ''}\\frac{{{abs(found.value.numerator)}}}{{{found.value.denominator}}}{power}"


def differs_at_sight(reference: str, answer: str) -> bool:
    """Whether an answer has what Math-Verify passes over, so that it is another one unless it is written the same.

    These are digits that stand apart, a variable behind a number, other relations, and words that change the value.
    """
    forms = normal_form(reference), normal_form(answer)
    apart = re.search(r"[\d.] [\d.]", forms[1]) is not None
    relations = [sorted(_RELATION.findall(spell(text))) for text in (reference, answer)]
    words = [sorted(CHANGING.findall(text.lower())) for text in (reference, answer)]
    two_readings = re.search(rf"/{_DECIMAL}\\pi", forms[1]) is not None
    variables = [_VARIABLE.fullmatch(form) is not None for form in forms]
    return forms[0] != forms[1] and (
        apart or two_readings or relations[0] != relations[1] or words[0] != words[1] or variables[0] != variables[1]
    )


def _named(found: re.Match[str]) -> tuple[str, int] | None:
    """Unit and scale of the end of an answer; None if it is no unit."""
    if found["sign"]:
        return ("percent" if "%" in found["sign"] else f"degree{found['scale'] or ''}"), 1
    written = found["text"] if found["text"] is not None else found["words"]
    words = written.lower().replace(".", "").replace("-", " ").split()
    scale = 1
    while words and words[0].removesuffix("s") in _SCALES:
        scale *= _SCALES[words.pop(0).removesuffix("s")]
    words = [word for word in words if word not in ("of", "a", "an", "the")]
    rest = " ".join(words)
    if CHANGING.search(rest) or re.search(r"\b(?:or|and|to|plus|minus|times|over|by)\b", rest):
        return None
    power = found["power"] or ""
    for name, of in (("square", "2"), ("sq", "2"), ("cubic", "3")):
        if words and words[0] == name:
            words, power = words[1:], of
    parts = [part.split() for part in re.split(r"/|\bper\b", " ".join(words))]
    known = all(len(part) == 1 and part[0] in _NAMES for part in parts)
    if known:
        name = "/".join(_NAMES[part[0]] for part in parts)
        if found["words"] is not None and len(written) == 1 and not found.string[: found.start()].endswith(" "):
            return None  # 5m is five times m, 5 m is a length
        return (f"{name}^{power}" if power else name) if name != "unit" else "", scale
    ordinal = rest in ("st", "nd", "rd", "th") and not power
    if found["text"] is None and not ordinal and words and (max(map(len, words)) < 4 or len(words) > _MOST_WORDS):
        return None  # a product of variables, or a sentence
    return OTHER if words and not ordinal else "", scale


def _read(form: str) -> tuple[Fraction, int] | None:
    """(value, power of pi) of a normal form without unit."""
    sign = -1 if form[:1] == "-" else 1
    body = form[1:] if form[:1] in "-+" and form[1:2] not in "-+" else form
    try:
        read = _unsigned(body)
    except (ValueError, ZeroDivisionError):
        return None
    return None if read is None else ((sign if body is not form else 1) * read[0], read[1])


def _unsigned(body: str) -> tuple[Fraction, int] | None:
    mixed = _MIXED.fullmatch(body)
    if mixed:
        above, below = int(mixed[2] or mixed[4]), int(mixed[3] or mixed[5])
        return (int(mixed[1]) + Fraction(above, below), _power(mixed[6])) if above < below else None
    bracketed = _BRACKETED.fullmatch(body)
    if bracketed:
        inner = _read(bracketed[1])
        return None if inner is None else (inner[0], inner[1] + _power(bracketed[2]))
    parts = _FRACTION.fullmatch(body) or _QUOTIENT.fullmatch(body)
    if parts is None:
        return _factor(body)
    fraction = parts.re is _FRACTION
    above_read = _factor(parts[1])
    below_read = _factor(parts[2] if fraction else parts[2] or parts[3])
    if above_read is None or below_read is None:
        return None
    behind = _power(parts[3]) if fraction else 0
    return above_read[0] / below_read[0], above_read[1] - below_read[1] + behind


def _factor(text: str) -> tuple[Fraction, int] | None:
    found = _FACTOR.fullmatch(text)
    if found is None or not (found[2] or found[6]):
        return None
    exponent = int(found[3] or found[4] or found[5] or 0)
    value = Fraction(found[2] or 1) * Fraction(10) ** exponent
    return (-value if found[1] == "-" else value), _power(found[6])


def _power(pi: str | None) -> int:
    return int(pi.strip("{}\\pi^") or 1) if pi else 0
