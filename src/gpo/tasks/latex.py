r"""Short LaTeX answers in one form, without a parser: what decides most comparisons at the cost of a few regexes."""

from __future__ import annotations

import re
import unicodedata

_COMMANDS = (
    "α alpha|β beta|γ gamma|δ delta|ε epsilon|ϵ epsilon|ζ zeta|η eta|θ theta|ϑ theta|ι iota|κ kappa|λ lambda|μ mu|ν nu|"
    "ξ xi|π pi|ρ rho|σ sigma|τ tau|υ upsilon|φ phi|ϕ phi|χ chi|ψ psi|ω omega|Γ Gamma|Δ Delta|Θ Theta|Λ Lambda|Ξ Xi|"
    "Π Pi|Σ Sigma|Φ Phi|Ψ Psi|Ω Omega|∞ infty|× times|· cdot|⋅ cdot|± pm|∪ cup|∩ cap|∈ in|≤ leq|≥ geq|≠ neq|≈ approx"
)
_CHARACTERS = {"÷": "/", "∕": "/", "⁄": "/", "−": "-", "﹣": "-", "－": "-", "％": "%", "′": "'", "°": "^\\circ "}
_SPACES = {"\u2009": "\\,", "\u202f": "\\,", "\u00a0": " "}
_SYMBOLS = {sign: f"\\{name} " for sign, name in (pair.split() for pair in _COMMANDS.split("|"))}
_TABLE = str.maketrans(_SYMBOLS | _CHARACTERS | _SPACES)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")

_ROW = "\x1f"  # stands for the end of a matrix row, a double backslash, while spacing goes
_IGNORED = re.compile(
    r"\\[()\[\]]|\\(?:left|right)(?![a-z])\.?|\\displaystyle|\\?\$|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))"
)
_SPACING = re.compile(r"\\[!,;: ]|~|\\q?quad\b")
_BLANKS = re.compile(r"(?<![\d.])\s+|\s+(?![\d.])")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SIMPLE_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]+)\}|(\d))\s*(?:\{([^{}]+)\}|(\d))")
_THIN_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\\[,!]\s*\d{3})+(?!\d)")
_THOUSANDS = re.compile(r"[-+]?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def spell(text: str) -> str:
    r"""Unicode mathematics in the spelling of LaTeX: ½, x², √3, 2π and 3 × 10⁵ are \frac{1}{2}, x^{2}, \sqrt{3}, ..."""
    if not text.isascii():
        text = _VULGAR.sub(_fraction, text)
        text = _RAISED_RUN.sub(lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
        text = _ROOT.sub(lambda m: f"\\sqrt{{{m[1] or m[2] or m[3]}}}", text)
        text = text.translate(_TABLE)
    return _PI.sub(r"\\pi ", text)


def spell_numbers(latex: str) -> str:
    r"""Thousands apart by `,\!`, `{,}` or thin spaces as 1,000 or 1000, fractions of simple terms as \frac{a}{b}."""
    latex = re.sub(r"(?<=\d)(?:\{,\}|,\\!\s*)(?=\d{3})", ",", latex)
    latex = _THIN_THOUSANDS.sub(lambda m: re.sub(r"\\[,!]\s*", "", m[0]), latex)
    return _SIMPLE_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", latex)


def normal_form(latex: str) -> str:
    r"""Without what does not change the value: spacing, `\left`, degree signs, `$`, the size of fractions, `\text`.

    A blank between two digits stays, since 2 3 is not 23, whatever the blank is made of. Thousands are joined where
    they are set apart by commas (the whole text is one number then; 1, 200 is two) or by thin spaces.
    """
    latex = spell_numbers(spell(latex).replace("\\\\", _ROW))
    latex = _SPACING.sub(" ", _TEXT.sub(r" \1 ", _IGNORED.sub(" ", latex)))
    latex = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", latex).strip().rstrip(".")
    if _THOUSANDS.fullmatch(latex):
        latex = latex.replace(",", "")
    return _BLANKS.sub("", re.sub(r"\s+", " ", latex)).replace(_ROW, "\\\\")


def _fraction(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return f"\\frac{{{above}}}{{{below or 1}}}"
