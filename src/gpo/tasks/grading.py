r"""Answers: taken out of a response, and compared with a reference.

Rules shared by all tasks. An answer stands after the last of these marks: `\boxed{...}`, `####`, "answer is",
"Answer:", "option is", "A:" at the beginning of a line, or in `<answer>...</answer>`; where there is none, the last
line must be nothing but the answer. A mark with nothing after it that has the expected form is passed over for the one
before; so is a box or tag that is empty or never closed, and what an instruction says in place of an answer (ANSWER).
What is thought (`<think>`) is no answer. Two answers at once, "(A) or (B)", are one wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping

from gpo.tasks.latex import spell, spell_numbers
from gpo.tasks.quantities import SCALE, exact_number
from gpo.types import Problem, Score

# Takes what follows a mark, and whether it must be nothing but the answer; gives the answer in one form for comparison.
Parser = Callable[[str, bool], str | None]

LONGEST_ANSWER = 2_000  # characters; more is no answer but a loop
_MARKS_TRIED = 16  # so that a text made of marks costs linear time

_MARK = re.compile(
    r"(?P<boxed>\\(?:boxed|fbox)\s*(?=\{))"
    r"|(?P<hashes>####)"
    r"|(?P<tag><answer>)"
    r"|(?P<said>\b(?:answer|option|choice)\b[\s*_]*(?:is\b|are\b|:|=)[\s*_:]*|^A:)",
    re.IGNORECASE | re.MULTILINE,
)
MARKS = ("boxed", "hashes", "tag", "said")
_CLOSED = re.compile("</answer>", re.IGNORECASE)
_ECHO = re.compile(r"[\s*_`\"'$(<\[{]*(?:ANSWER|NUMBER|LETTER)[\s*_`\"'$)>\]}.]*")  # of an instruction
_NEXT_QUESTION = re.compile(r"^(?:Q|Question|Problem):", re.MULTILINE)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_OPTION_LINE = re.compile(r"^\(([A-Z])\) (.*)$", re.MULTILINE)
_OPTION = re.compile(
    r"(?:(?i:option|choice|answer)\s+)?[*_]*"
    r"(?:[(\[][\s*]*(?=[A-Za-z][\s*]*[)\]]))?"  # an opening bracket, if there is a closing one
    r"(?P<letter>(?<=[(\[*])[A-Za-z](?=[\s*]*[)\]])|[a-z](?=\))|[A-Z](?=[\s*]*(?:$|[).:,;\]/&]|\s(?:or|and)\b)))"
    r"[\s*]*[)\]]?"
)
_OPTION_LATER = re.compile(r"(?:(?!\bnot\b).)*?\((?P<letter>[A-Z])\)")
_SECOND_OPTION = re.compile(r"[\s*).\]]*(?:,|/|&|\bor\b|\band\b)[\s*]*(?:option\s*)?(?:[(\[][A-Za-z][)\]]|[A-Z]\b)")
_NUMBER = re.compile(
    r"(?<![\w.{^])[-+]?\s?\$?\s?"
    r"(?:\d+\s+\d+\s?/\s?\d+|(?:\d+\s*)?\\frac\{\d+\}\{\d+\}|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d+|\s*(?:[*x]|\\times|\\cdot)\s*10(?:\^|\*\*)\{?[-+]?\d+\}?)?(?:\s?/\s?\d+)?"
)
_ANY_NUMBER = re.compile(  # wherever it stands, as the flexible-extract of lm-evaluation-harness finds it
    r"(?:(?<![\w)\]}])[-−])?\$?"
    r"(?:\\[dt]?frac\{\d+\}\{\d+\}|(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)(?:/\d+)?)"
)
_NO_NUMBER = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\[,!;: ]|~|\\q?quad\b")  # degrees and spacing
_EXPRESSION_BEFORE = re.compile(r"(?:[/*^]|\\[a-z]+)\s*$")
_OPERATOR = re.compile(r"\s*(?:=|[\^!]|\*(?!\*)|[-+/]\s*[\d(\\]|\)?\s*\\[a-z]{2}|\)\s*[*/^]|[,:x]?\s*\d)")
_SECOND_NUMBER = re.compile(r"[\s*$]*(?:\bor\b|\band\b)[\s*$]*[-−]?\d")
_WORD_SETS = (("yes", "no"), ("true", "false"), ("valid", "invalid"))
_BRACKETS = "()[]{}<>"


def answer_text(text: str) -> str | None:
    """The part of a response that may hold its answer, None if it never stopped thinking.

    A base model that goes on with a question of its own after answering is cut there.
    """
    rest = text.rpartition("</think>")[2]
    if "<think>" in rest:
        return None
    mark = _MARK.search(rest)
    following = _NEXT_QUESTION.search(rest, mark.end()) if mark else None
    return rest[: following.start()] if following else rest


def candidates(
    text: str, *, whole_line: bool = False, marks: Container[str] = MARKS, reference: str = ""
) -> Iterator[str]:
    r"""What follows each mark, the last mark first, at most `LONGEST_ANSWER` characters each.

    Args:
        whole_line: a `\boxed{` ends at the last brace of its line: for answers that are made of brackets.
        marks: the kinds of marks that count.
        reference: may be what else would be the echo of an instruction.
    """
    found = [mark for mark in _MARK.finditer(text) if mark.lastgroup in marks]
    for mark in found[: -_MARKS_TRIED - 1 : -1]:
        span = text[mark.end() : mark.end() + LONGEST_ANSWER + 1]
        said = _behind(mark, span, whole_line)
        said = said if said is None or mark["boxed"] else _without_void_box(said)
        if said is not None and len(said) <= LONGEST_ANSWER and not _says_nothing(said, reference):
            yield said


def _behind(mark: re.Match[str], span: str, whole_line: bool) -> str | None:
    """What the text behind a mark gives as its answer."""
    if mark["boxed"]:
        line = span.partition("\n")[0]
        return line[1 : max(1, line.rfind("}"))] if whole_line else braced(span)
    closed = _CLOSED.search(span)
    if mark["tag"]:
        return span[: closed.start()] if closed else None
    return (span[: closed.start()] if closed else span).lstrip().partition("\n")[0]


def _without_void_box(span: str) -> str:
    """What stands before a box at the end that is empty or cut off."""
    for mark in reversed([mark for mark in _MARK.finditer(span) if mark["boxed"]]):
        if (braced(span[mark.end() :]) or "").strip():
            break
        span = span[: mark.start()]
        span = span if re.search(r"\w", span) else ""  # the sign before the box is no answer
    return span


def _says_nothing(span: str, reference: str) -> bool:
    """Whether what stands after a mark is blank, an echo, or ends with a box of which this is true."""
    boxes = [mark.end() for mark in _MARK.finditer(span) if mark["boxed"]]
    said = (braced(span[boxes[-1] :]) or "") if boxes else span
    return not said.strip() or (_ECHO.fullmatch(said) is not None and said.strip(" .") != reference.strip(" ."))


def solution_answer(text: str) -> str:
    r"""The answer of a worked solution: behind its last `####`, in its last box or tag; the text itself without one.

    A solution of several lines may say it in words too ("The answer is 7.").
    """
    lines = [line for line in text.splitlines() if line.strip()]
    said = next(candidates(text, marks=MARKS[:3]), None) or (next(candidates(text), None) if len(lines) > 1 else None)
    return text.strip() if said is None else said.strip()


def braced(text: str) -> str | None:
    """What stands between the brace that `text` begins with and the one that closes it, None if none does."""
    depth, escaped = 0, False
    for i, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[1:i]
    return None


def last_line(text: str, reference: str = "") -> str:
    """The last line that is not blank, empty if there is none or if it is too long for an answer, or says none."""
    line = _without_void_box(text.rstrip().rpartition("\n")[2]).strip()
    marks = list(_MARK.finditer(line))
    said = (_behind(marks[-1], line[marks[-1].end() :], False) or "") if marks else line
    return "" if len(line) > LONGEST_ANSWER or _says_nothing(said, reference) else line


def undecorated(span: str) -> str:
    r"""Without the marks of Markdown and LaTeX around an answer: `**`, `$`, quotes, `\text{}`, `\(`."""
    span = re.sub(r"\\[()\[\]]", " ", _TEXT_COMMAND.sub(r"\1", span))
    return span.strip(" \t*_`$\"'“”‘’:")


def extract(text: str, parse: Parser, *, whole_line: bool = False, reference: str = "") -> str | None:
    """The answer of a response in the form of `parse`, None if there is none."""
    rest = answer_text(text)
    if rest is None:
        return None
    for span in candidates(rest, whole_line=whole_line, reference=reference):
        found = parse(span, False)
        if found is not None:
            return found
    return parse(last_line(rest, reference), True)


def options(question: str) -> dict[str, str]:
    """The options of a question that are listed as lines "(A) text": letter -> text."""
    return {letter: option.strip() for letter, option in _OPTION_LINE.findall(question)}


def option_parser(listed: Mapping[str, str]) -> Parser:
    """Options in any usual form: (A), A, A., [a], option A, or the text of one of the `listed` options."""
    by_text = {_plain(option): letter for letter, option in listed.items()}

    def parse(span: str, alone: bool) -> str | None:
        span = undecorated(span)
        if _plain(span) in by_text:
            return f"({by_text[_plain(span)]})"
        found = _OPTION.match(span) or (None if alone else _OPTION_LATER.match(span))
        if found is None:
            return None
        letter = found["letter"].upper()
        rest = _plain(span[found.end() :])
        if alone and rest and by_text.get(rest) != letter:
            return None
        return span if _SECOND_OPTION.match(span, found.end()) else f"({letter})"

    return parse


def _plain(text: str) -> str:
    return text.strip(" \t.)]:*").casefold()


def word_parser(words: tuple[str, ...]) -> Parser:
    """One of two opposite words, such as yes and no; "not valid" is the other word."""
    pattern = re.compile(rf"\b(not\s+)?({'|'.join(words)})\b", re.IGNORECASE)

    def parse(span: str, alone: bool) -> str | None:
        span = undecorated(span)
        found = pattern.match(span) if alone else pattern.search(span)
        if found is None or (alone and span[found.end() :].strip(" .!*")):
            return None
        if re.match(r"\s*(?:or|and|/)\s*(?:not\s+)?\w", span[found.end() :]):
            second = pattern.search(span, found.end())
            if second:
                return span
        word = found[2].lower()
        return words[1 - words.index(word)] if found[1] else word

    return parse


def parse_number(span: str, alone: bool = False) -> str | None:
    """A number as an integer or a reduced fraction: "$1,234.50" is 2469/2. Of an equation, its right side.

    An expression that is not worked out, such as 2^10, is an answer that equals no number.
    """
    span = undecorated(spell(span)).rstrip(" .")
    value = exact_number(span)
    if value is not None:
        return str(value)
    span = _NO_NUMBER.sub(" ", spell_numbers(span))
    found = _NUMBER.match(span)
    if "=" in span and not (found and not _OPERATOR.match(span, found.end())):
        return parse_number(span.rpartition("=")[2], alone)
    found = _NUMBER.match(span) if alone else _NUMBER.search(span)
    if found is None or (alone and span[found.end() :].strip(" .*$")):
        return None
    around = _EXPRESSION_BEFORE.search(span[: found.start()]) or _OPERATOR.match(span, found.end())
    if around or _SECOND_NUMBER.match(span, found.end()):
        return span
    scale = SCALE.match(span, found.end())
    value = exact_number(found[0] + (scale[0] if scale else ""))
    return None if value is None else str(value)


def last_number(text: str) -> str | None:
    """The last number of a response, wherever it stands, as an integer or a reduced fraction; None without one."""
    found = _ANY_NUMBER.findall(answer_text(text) or "")
    return parse_number(found[-1], True) if found else None


def parse_words(span: str, alone: bool) -> str | None:
    """A list of words, separated by blanks or commas."""
    sentence = re.split(r"[.!?](?:\s|$)", undecorated(span), maxsplit=1)[0]
    words = [word.strip("\"'`*[]()“”‘’") for word in re.split(r"[\s,]+", sentence)]
    return " ".join(word for word in words if word).casefold() or None


def parse_brackets(span: str, alone: bool) -> str | None:
    """Brackets, whatever stands between them."""
    span = re.sub(r"\\([{}<>()\[\]])", r"\1", span)
    rest = re.sub(rf"^[\s,\"'`*$.{re.escape(_BRACKETS)}]*", "", span)
    found = [character for character in span[: len(span) - len(rest)] if character in _BRACKETS]
    return " ".join(found) if found and not (rest and (alone or not rest[0].isupper())) else None


def parse_text(span: str, alone: bool = False) -> str | None:
    """The whole line, without case, outer blanks and the last full stop."""
    return " ".join(undecorated(undecorated(span).rstrip(" .")).casefold().split()) or None


def parser_for(reference: str, question: str = "") -> tuple[Parser, bool]:
    """The parser for answers of the form of `reference`, and whether they are made of brackets.

    The forms: an option "(A)", one of two words (yes/no, True/False, valid/invalid), a number, brackets, words.
    """
    reference = reference.strip()
    if re.fullmatch(r"\([A-Z]\)", reference):
        return option_parser(options(question)), False
    for words in _WORD_SETS:
        if reference.lower() in words:
            return word_parser(words), False
    if parse_number(reference, True) is not None:
        return parse_number, False
    if reference and all(character in _BRACKETS or character.isspace() for character in reference):
        return parse_brackets, True
    if "Options:" in question:
        return parse_text, False
    return parse_words, False


def compare(reference: str | None, answer: str | None) -> Score:
    """The verdict on two answers in the form for comparison."""
    if answer is None:
        return Score(0.0, "ungradable")
    right = answer == reference
    return Score(float(right), "right" if right else "wrong", answer)


def score_bbh(problem: Problem, text: str) -> Score:
    """Grade a response to a BBH question, or to any question whose reference has one of the forms of BBH."""
    parse, brackets = parser_for(problem.answer, problem.question)
    found = extract(text, parse, whole_line=brackets, reference=problem.answer)
    return compare(parse(problem.answer.strip(), True), found)
