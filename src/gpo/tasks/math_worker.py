"""A process that compares two mathematical expressions, over and over, until its standard input closes.

Reads a line `{"reference": LaTeX, "answer": text}` and writes a line with the verdict. Started by `math_grading`, which
may kill it at any moment. Math-Verify and SymPy may hang, eat memory or crash; nothing of that leaves this process.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys

MEMORY = 2 * 2**30  # bytes


DIGITS = 12  # behind the point, in which numbers that are no rationals must agree


def verdict(reference: str, answer: str) -> str:
    """`right`, `wrong`, or `failed` and why."""
    from math_verify import parse, verify

    gold = parse(f"${reference}$", parsing_timeout=None)
    if not gold:
        return f"failed DataError: no expression in the reference {reference!r}"
    given = parse(answer, parsing_timeout=None)
    return "right" if given and verify(gold, given, float_rounding=DIGITS, timeout_seconds=None) else "wrong"


def main(seconds: float) -> None:
    """Answers until end of file. A job over its time ends the process: the kernel's timer needs no Python to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    sys.stdout = sys.stderr
    verdict("1", "$1$")  # imports SymPy before the first time limit runs
    print("ready", file=replies)
    for line in sys.stdin:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            reply = verdict(job["reference"], job["answer"])
        # Whatever a parser of arbitrary text raises, the answer is one that could not be graded.
        except Exception as error:
            reply = f"failed {type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(" ".join(reply.split())[:200], file=replies)


if __name__ == "__main__":
    main(float(sys.argv[1]))
