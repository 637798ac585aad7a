"""Equal values are right however they are spelled, and different ones never are."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpo.tasks.grading import parse_number
from gpo.tasks.math_grading import score_math

VULGAR = {Fraction(1, 2): "½", Fraction(1, 4): "¼", Fraction(3, 4): "¾", Fraction(2, 3): "⅔", Fraction(1, 8): "⅛"}
BLANKS = (" ", "  ", "\\ ", "~", "\\;", "\\quad ", "\u00a0", "\n")

rationals = st.builds(Fraction, st.integers(-40, 40), st.sampled_from([1, 1, 2, 3, 4, 5, 8, 20]))
large = st.integers(1_000, 3_000_000).map(Fraction)
numbers = st.one_of(rationals, rationals, large)


def spellings(value: Fraction) -> list[str]:
    """Ways in which models write one number."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    above, below = size.as_integer_ratio()
    whole, rest = divmod(size, 1)
    forms = [
        f"{sign}{above}/{below}",
        f"{sign}\\frac{{{above}}}{{{below}}}",
        f"{sign}\\dfrac {{{2 * above}}} {{{2 * below}}}",
    ]
    if below == 1:
        forms += [f"{sign}{above}", f"{sign}{above}.0", f"{sign}{above:,}", f"{sign} {above}.", f"${sign}{above}$"]
        if above >= 1_000:
            forms += [f"{sign}{above:,}".replace(",", mark) for mark in ("\\,", ",\\!", "{,}", "\u202f")]
    elif whole:
        a, b = rest.as_integer_ratio()
        forms += [
            f"{sign}{whole} {a}/{b}",
            f"{sign}{whole}\\frac{{{a}}}{{{b}}}",
            f"{sign}{whole} \\tfrac{{{a}}}{{{b}}}",
        ]
        forms += [f"{sign}{whole}{VULGAR[rest]}"] if rest in VULGAR else []
    if set(_factors(below)) <= {2, 5}:
        decimal = f"{above * 10**6 // below:07d}"
        written = f"{decimal[:-6]}.{decimal[-6:]}"
        forms += [f"{sign}{written}", f"{sign}{written.rstrip('0')}"]
        if above:
            mantissa = f"{sign}{written[0]}.{decimal[1:]}" if len(decimal) == 7 else f"{sign}{float(size) / 1000:.9f}"
            power = 0 if len(decimal) == 7 else 3
            forms += [f"{mantissa}e{power}", f"{mantissa} \\times 10^{{{power}}}", f"{mantissa} × 10^{power}"]
            forms += [f"{sign}{above * 10**6 // below}e-6", f"{sign}{above * 10**6 // below} \\cdot 10^{{-6}}"]
    return forms


def _factors(number: int) -> list[int]:
    return [factor for factor in (2, 3, 5) if number % factor == 0]


def circles(value: Fraction) -> list[str]:
    """Ways in which models write a multiple of pi."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    above, below = size.as_integer_ratio()
    forms = [
        f"{sign}\\frac{{{above}\\pi}}{{{below}}}",
        f"{sign}\\frac{{{above}}}{{{below}}}\\pi",
        f"{sign}{above}π/{below}",
    ]
    forms += [f"{sign}\\dfrac{{{above} \\pi}}{{{below}}}", f"{sign}({above}/{below})π", f"{sign}{above}pi/{below}"]
    if below == 1:
        forms += [f"{sign}{above}\\pi", f"{sign}{above} \\cdot \\pi", f"{sign}{above} π"]
    if above == 1:
        forms += [f"{sign}π/{below}", f"{sign}\\frac{{\\pi}}{{{below}}}"]
    return forms


def verdict(reference: str, answer: str) -> str:
    score = score_math(reference, f"Therefore \\boxed{{{answer}}}", seconds=60.0)
    return score.reason or score.verdict


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_number_is_right_if_and_only_if_it_is_equal(data: st.DataObject) -> None:
    ours, theirs = data.draw(numbers), data.draw(numbers)
    for other in (ours, theirs):
        a, b = data.draw(st.sampled_from(spellings(ours))), data.draw(st.sampled_from(spellings(other)))
        assert (verdict(a, b) == "right") == (ours == other), (a, b)
        assert (parse_number(a, True) == parse_number(f"{b} apples")) == (ours == other), (a, b)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_multiple_of_pi_is_right_if_and_only_if_it_is_equal(data: st.DataObject) -> None:
    nonzero = rationals.filter(bool)
    ours, theirs = data.draw(nonzero), data.draw(nonzero)
    a, b = data.draw(st.sampled_from(circles(ours))), data.draw(st.sampled_from(circles(theirs)))
    same = data.draw(st.sampled_from(circles(ours)))
    number = data.draw(st.sampled_from(spellings(ours)))
    assert verdict(a, same) == "right", (a, same)
    assert (verdict(a, b) == "right") == (ours == theirs), (a, b)
    assert verdict(a, number) == verdict(number, a) == "wrong", (a, number)
    assert parse_number(f"it is {a}") != parse_number(number, True), (a, number)


@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"\A[1-9]\d{0,3}\Z"), st.from_regex(r"\A\d{1,3}\Z"), st.sampled_from(BLANKS))
def test_a_blank_between_digits_joins_nothing(left: str, right: str, blank: str) -> None:
    assert verdict(left + right, left + blank + right) == "wrong"
    assert parse_number(left + blank + right) != left + right
    assert parse_number(f"it is {left}{blank}{right}") not in (left + right, left)
    for frame in ("({}, 5)", "x^{}", "\\{{{}\\}}", "{}x"):
        assert verdict(frame.format(left + right), frame.format(left + blank + right)) == "wrong"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 99), st.integers(1, 99))
def test_a_percentage_is_its_number_or_its_hundredth(ours: int, theirs: int) -> None:
    for sign in ("\\%", "%", " percent", "\\text{ percent}"):
        assert verdict(f"{ours}\\%", f"{ours}{sign}") == "right"
        assert verdict(str(ours), f"{ours}{sign}") == verdict(f"\\frac{{{ours}}}{{100}}", f"{ours}{sign}") == "right"
        if ours != theirs:
            assert verdict(f"{ours}\\%", f"{theirs}{sign}") == verdict(str(ours), f"{theirs}{sign}") == "wrong"
    assert verdict(f"{ours}\\%", f"{Fraction(ours, 100)}\\%") == "wrong"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("10", "10 cm"),
        ("10", r"10\text{ apples}"),
        ("10", "10 apples"),
        (r"10\text{ cm}", "10 centimeters"),
        (r"10\text{ cm}^2", "10 square centimeters"),
        (r"10\text{ cm}^2", "10 cm²"),
        (r"5 \text{ m}", "5 m"),
        (r"90^\circ", "90 degrees"),
        (r"90^\circ", "90°"),
        (r"\$32,\!348", "32,348 dollars"),
        (r"\$5", "5"),
        ("60", "60 miles per hour"),
        (r"\frac{270}7\text{ degrees}", "38 4/7°"),
        ("5000000", r"5\text{ million}"),
        ("8", r"8\text{th}"),
        (r"\theta", "θ"),
        (r"2\alpha + 1", "1 + 2α"),
        (r"\sqrt{3}", "√3"),
        (r"x^2", "x²"),
        (r"(-\infty, 2]", "(-∞,2]"),
        (r"\frac{\sqrt{3}}{2}", "√3/2"),
        ("10^5", "1e5"),
        ("x = 5", "5"),
        ("5", "x = 5"),
        (r"137 \frac{1}{2}", "137.5"),
        ("-5", r"-\sqrt{25}"),
        (r"10\text{ cm}^3", "10 cubic centimeters"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
)
def test_equal_values_are_right(reference: str, answer: str) -> None:
    assert verdict(reference, answer) == "right"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("31/2", "3 1/2"),
        ("11/2", "1 1/2"),
        ("1", "1e5"),
        ("2", "π/2"),
        ("2", "2α"),
        (r"\alpha", "a"),
        (r"\theta", "φ"),
        (r"10\text{ cm}", "10 m"),
        (r"10\text{ cm}", r"10\text{ cm}^2"),
        (r"864 \mbox{ inches}^2", r"864 \text{ inches}^3"),
        (r"\$5", r"5\text{ cents}"),
        ("10°C", "10°F"),
        ("5", r"5\text{ million}"),
        ("5", r"5\text{ squared}"),
        ("5", r"\neq 5"),
        ("5", r"\leq 5"),
        ("5", "5t"),
        ("5m", "5"),
        ("1200", "1, 200"),
        ("1, 200", "1,200"),
        ("2", "2²"),
        ("22", "2²"),
        ("11/2", "1½"),
        (r"2\pi", "6.283185"),
        (r"\frac{\pi}{2}", r"1/2\pi"),
        (r"\frac{1}{2\pi}", r"1/2\pi"),
        (r"\frac{9}{2}", "2 5/2"),
        (r"\sqrt{2}", "1.41421356"),
        ("x = 5", "y = 5"),
        ("530", "5° 30"),
        ("-5", r"\sqrt{25}"),
    ],
)
def test_different_values_are_wrong(reference: str, answer: str) -> None:
    assert verdict(reference, answer) == "wrong"


@pytest.mark.parametrize("line", ["12 people are here", "12 apples", "5 times as much", "3 hours and 5"])
def test_a_last_line_with_words_is_no_number(line: str) -> None:
    assert parse_number(line, True) is None
    assert score_math("12", f"Therefore\n{line}").verdict == "ungradable"
