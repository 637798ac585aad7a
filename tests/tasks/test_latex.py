"""Normal forms of short LaTeX answers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpo.tasks.latex import normal_form
from gpo.tasks.quantities import exact_number


@pytest.mark.parametrize(
    ("written", "same"),
    [
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90°"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        (r"\frac 34", r"\tfrac{3}{4}"),
        (r"\frac9{19}", r"\frac{9}{19}"),
        (r"\$32,\!348", "32,348"),
        (r"\text{Evelyn}", "Evelyn."),
        (r"\( x + 1 \)", "x+1"),
    ],
)
def test_what_does_not_change_the_value_goes(written: str, same: str) -> None:
    assert normal_form(written) == normal_form(same)


@pytest.mark.parametrize(
    ("written", "other"), [("1,-2", "12"), (r"\leftarrow", "arrow"), (r"\frac{1}{23}", r"\frac{12}{3}")]
)
def test_what_changes_the_value_stays(written: str, other: str) -> None:
    assert normal_form(written) != normal_form(other)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("-7", Fraction(-7)),
        ("−7", Fraction(-7)),
        ("+.5", Fraction(1, 2)),
        ("10,080", Fraction(10080)),
        (r"-\frac{1}{3}", Fraction(-1, 3)),
        (r"\frac{-1}{-3}", Fraction(1, 3)),
        ("1.5/3", Fraction(1, 2)),
        ("1/0", None),
        ("2^{10}", None),
        (r"\pi", None),
        ("50\\%", None),
        ("", None),
        ("9" * 5_000, None),
    ],
)
def test_exact_numbers(written: str, value: Fraction | None) -> None:
    assert exact_number(written) == value
