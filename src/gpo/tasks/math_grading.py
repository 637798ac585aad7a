r"""Grading of mathematical answers: by normal form where that decides, else by Math-Verify in worker processes.

Worker processes are few, started when first needed, killed when an answer takes too long, and renewed now and then.
No signal is used in this process, so any thread may grade.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import lru_cache
from queue import LifoQueue
from threading import Timer
from typing import IO, NamedTuple, cast, get_args

from gpo.tasks.grading import answer_text, candidates, last_line, parse_number, parse_text, undecorated
from gpo.tasks.latex import normal_form, spell
from gpo.tasks.quantities import differs_at_sight, exact_number, quantity, same_quantity, spelled
from gpo.types import Score, Verdict

START_SECONDS = 120.0  # for the imports of a worker on a busy machine
GRACE_SECONDS = 2.0  # after its own time limit a worker is killed from here
JOBS_PER_WORKER = 2_000
MATHEMATICS = re.compile(r"[\d\\^=+*/]")
DEEPEST = 30  # braces within braces; no answer needs them, and parsers crash on them

_PLAIN_WORD = re.compile(r"\(?\\text(?:bf|it|rm)?\{\s*(\(?[A-Za-z][A-Za-z .'-]*\)?)\s*\}\)?")
_BASED = re.compile(r"([0-9A-Z]+)(?:_\{?(\d+)\}?)?")
# Markdown around an answer: **x**, `x`. Bold may be followed by words, unless these are a second answer.
_OPENING = re.compile(r"[\s*`\"]+")
_CLOSING = re.compile(
    r"(?<![\s^])\*{2,3}(?=[\s.,;:!)])(?!\s*,?\s*(?:or|and)\b)[^\d*\\$]*$|(?<!\^)[*_`\"]+[\s.!]*$", re.IGNORECASE
)
_REASON = re.compile(r",\s+(?:as|because|since|so|when|where|which)\b[^\d\\$]*$", re.IGNORECASE)  # "9, as shown"
_NAMED = re.compile(r"^(\$?)\s*[A-Za-z]\s*=(?=[^=]*$)")
_MATH_SPAN = re.compile(r"(?<!\\)\$((?:\\.|[^$\\])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")


class Comparison(NamedTuple):
    """Whether an answer is right or wrong; `failed` has a reason."""

    verdict: Verdict
    reason: str | None = None


class _Worker:
    """One process, and what was asked of it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.jobs = 0
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpo.tasks.math_worker", str(seconds)],  # not from the folder where it runs
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self.alive = self._reply(START_SECONDS) == "ready"

    def compare(self, reference: str, answer: str) -> Comparison:
        """The verdict; `failed` and no longer alive if the process died over it or took too long."""
        self.jobs += 1
        began = time.monotonic()
        if self.alive:
            try:
                print(json.dumps({"reference": reference, "answer": answer}), file=self._process.stdin, flush=True)
            except OSError:
                self.alive = False
        verdict, _, reason = (self._reply(self.seconds + GRACE_SECONDS) if self.alive else "").partition(" ")
        self.alive = verdict in get_args(Verdict)
        if self.alive:
            return Comparison(cast(Verdict, verdict), reason or None)
        return self._death(time.monotonic() - began)

    def _death(self, seconds: float) -> Comparison:
        """What a process that answers no more, for so long now, has died of."""
        try:
            code = self._process.wait(GRACE_SECONDS if GRACE_SECONDS > 0 else None)
        except subprocess.TimeoutExpired:
            return Comparison("failed", "ChildProcessError: the grading process closed its output")
        # Somebody else may have killed it, and long ago.
        if code == -signal.SIGALRM or (
            code == -signal.SIGKILL and seconds > 0.9 * (self.seconds + min(0, GRACE_SECONDS))
        ):
            return Comparison("failed", f"TimeoutError: no verdict within {self.seconds:g} s")
        return Comparison("failed", f"ChildProcessError: the grading process ended with code {code}")

    def close(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.communicate()

    def _reply(self, seconds: float) -> str:
        """The next line, empty if the process ended or had to be killed."""
        timer = Timer(seconds, self._process.kill)
        timer.start()
        try:
            return cast(IO[str], self._process.stdout).readline().strip()
        finally:
            timer.cancel()


class Workers:
    """At most `size` processes that compare expressions, each answer within `seconds`. Safe to use from threads."""

    def __init__(self, size: int = 2, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self.restarts = 0
        self._idle: LifoQueue[_Worker | None] = LifoQueue()  # None is a place whose process is not running
        for _ in range(size):
            self._idle.put(None)
        self._size = size

    def compare(self, reference: str, answer: str) -> Comparison:
        """Whether `answer`, text with LaTeX in `$`, equals the LaTeX `reference`. Waits for an idle process.

        A process that did not begin, or had other work before, may have died of that: a new one is asked then.
        """
        found, innocent = self._compare(reference, answer)
        return self._compare(reference, answer)[0] if innocent else found

    def _compare(self, reference: str, answer: str) -> tuple[Comparison, bool]:
        """The verdict, and whether it failed for another reason than this pair, as far as can be told."""
        worker = self._idle.get()
        try:
            if worker is None:
                worker = _Worker(self.seconds)
            fresh = worker.alive and worker.jobs == 0
            found = worker.compare(reference, answer)
            timed_out = (found.reason or "").startswith("TimeoutError")
            return found, found.verdict == "failed" and not worker.alive and not fresh and not timed_out
        finally:
            if worker is not None and (not worker.alive or worker.jobs >= JOBS_PER_WORKER):
                worker.close()
                worker = None
                self.restarts += 1
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the processes once they are idle; they start again when needed."""
        places = [self._idle.get() for _ in range(self._size)]
        for worker in places:
            if worker is not None:
                worker.close()
            self._idle.put(None)


@lru_cache(maxsize=8)
def shared_workers(size: int, seconds: float, process: int) -> Workers:
    """The workers of this process, one pool for each size and time limit."""
    workers = Workers(size, seconds)
    atexit.register(workers.close)
    return workers


class _NoVerdict(Exception):
    """A comparison that failed, which no cache keeps: a busy machine may have been the reason."""

    def __init__(self, found: Comparison) -> None:
        self.found = found


def compare_math(reference: str, answer: str, size: int = 2, seconds: float = 5.0) -> Comparison:
    """Whether a span of an answer equals the LaTeX reference; the same pair is compared once, if that did not fail."""
    try:
        return _compared(reference, answer, size, seconds)
    except _NoVerdict as error:
        return error.found


@lru_cache(maxsize=10_000)
def _compared(reference: str, answer: str, size: int, seconds: float) -> Comparison:
    """Raises: _NoVerdict if it failed."""
    reference, answer = _without_name(reference, answer)
    exact = quantity(reference), quantity(answer)
    if exact[0] and exact[1]:
        return _verdict(same_quantity(exact[0], exact[1]))
    if normal_form(answer) == normal_form(reference):
        return _verdict(True)
    if differs_at_sight(reference, answer) or _of_other_base(reference, answer):
        return _verdict(False)
    word = _PLAIN_WORD.fullmatch(reference.strip())
    if word:
        plain = undecorated(answer).strip("(). ").casefold()
        return _verdict(plain == word[1].strip("()").strip().casefold())
    reference, answer = (spelled(q) if q else spell(text) for q, text in zip(exact, (reference, answer), strict=True))
    text = answer if _MATH_SPAN.search(answer) else f"${answer}$"
    found = shared_workers(size, seconds, os.getpid()).compare(reference, text)
    if found.verdict == "failed":
        raise _NoVerdict(found)
    return found


def _verdict(right: bool) -> Comparison:
    return Comparison("right" if right else "wrong")


def _without_name(reference: str, answer: str) -> tuple[str, str]:
    """Without the x = of the one where the other has none."""
    if ("=" in reference) == ("=" in answer):
        return reference, answer
    return _NAMED.sub(r"\1", reference), _NAMED.sub(r"\1", answer)


def math_answer(text: str, reference: str = "") -> str | None:
    """The answer of a response: what stands in the last box, after the last mark, or is its last line of mathematics.

    None if there is none, or if it is nested so deep that it is no answer.
    """
    rest = answer_text(text)
    if rest is None:
        return None
    boxed = next(candidates(rest, marks=("boxed",), reference=reference), None)
    span = boxed or next(candidates(rest, reference=reference), None)
    if span is None:
        line = _undecorated(last_line(rest, reference))
        math = _MATH_SPAN.fullmatch(line)
        span = line if math or exact_number(line) is not None else None
    else:
        span = _undecorated(span)
        pieces = _MATH_SPAN.findall(span)
        span = next(piece for piece in pieces[0] if piece) if len(pieces) == 1 else span
    if span is None or not span.strip() or _depth(span) > DEEPEST:
        return None
    return span.strip().rstrip(".")


def _undecorated(span: str) -> str:
    span = _REASON.sub("", span.strip())
    opening = _OPENING.match(span)
    return _CLOSING.sub("", span[opening.end() :] if opening else span).rstrip(". ")


def score_math(reference: str, text: str, workers: int = 2, seconds: float = 5.0) -> Score:
    """Grade a response against a LaTeX reference. An answer that the grader cannot handle in time is `failed`.

    Without a reference no response is right, and the answers have one form for each value, so that they can be counted.
    """
    answer = math_answer(text, reference)
    if answer is None:
        return Score(0.0, "ungradable")
    if not reference.strip():
        return Score(0.0, "wrong", form_of(answer))
    verdict, reason = compare_math(reference, answer, workers, seconds)
    return Score(None if verdict == "failed" else float(verdict == "right"), verdict, answer, reason)


def form_of(answer: str) -> str:
    """A number as an integer or a reduced fraction, other mathematics without blanks, words without case."""
    number = parse_number(answer, True)
    if number is not None:
        return number
    plain = undecorated(answer)
    return "".join(plain.split()) if MATHEMATICS.search(plain) else parse_text(plain) or answer.strip()


def _of_other_base(reference: str, answer: str) -> bool:
    """Whether both name a base and not the same one: 52_8 and 52_9."""
    bases = _BASED.fullmatch(normal_form(reference)), _BASED.fullmatch(normal_form(answer))
    if not (bases[0] and bases[1] and bases[0][2]):
        return False
    return bases[0][1] != bases[1][1] or bases[1][2] not in (None, bases[0][2])


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest
