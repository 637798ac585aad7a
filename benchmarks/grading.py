"""Seconds to grade 10,000 short answers and to load and render 10,000 problems, beside Math-Verify called directly.

    python benchmarks/grading.py [--answers 10000]

Answers are those of real problems: half as published, half changed, in the forms that models write. "Short" numbers and
options (GSM8K, BBH) are graded here; MATH is graded by normal form where that decides and by Math-Verify in worker
processes where not. The comparison is Math-Verify's own `parse` and `verify` in this process, without a limit of time.
Needs the real data (GPO_DATA). Grading starts with cold worker processes and counts their start.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import gpo
from gpo.config.presets import model_path
from gpo.contracts import Task
from gpo.rollout.prompting import render
from gpo.types import Problem

FORMS = ("So the answer is {}.", "We get $\\boxed{{{}}}$.", "Therefore:\n#### {}", "The final answer is **{}**")


def answers(problems: Sequence[Problem], count: int) -> list[tuple[Problem, str]]:
    """`count` responses, the published answer and a changed one in turns."""
    pairs = []
    for i, problem in enumerate(islice(cycle(problems), count)):
        answer = problem.answer if i % 2 else f"{problem.answer}7"
        pairs.append((problem, "A line of thought.\n" + FORMS[i // 2 % len(FORMS)].format(answer)))
    return pairs


def grade(name: str, task: Task, count: int) -> None:
    work = answers(task.problems("test"), count)
    begin = time.perf_counter()
    verdicts = Counter(task.score(problem, text).verdict for problem, text in work)
    seconds = time.perf_counter() - begin
    counted = ", ".join(f"{value} {key}" for key, value in sorted(verdicts.items()))
    print(f"{name:<24} {seconds:6.2f} s for {len(work):,}  ({counted})", flush=True)


def math_verify_directly(task: Task, count: int) -> None:
    from math_verify import parse, verify

    work = answers(task.problems("test"), count)
    begin = time.perf_counter()
    right = sum(
        bool(
            verify(
                parse(f"${p.answer}$", parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None
            )
        )
        for p, text in work
    )
    seconds = time.perf_counter() - begin
    print(f"{'math, Math-Verify alone':<24} {seconds:6.2f} s for {len(work):,}  ({right} right)", flush=True)


def timed(name: str, count: int, job: Callable[[], object]) -> None:
    begin = time.perf_counter()
    job()
    print(f"{name:<24} {time.perf_counter() - begin:6.2f} s for {count:,}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=10_000)
    count = parser.parse_args().answers
    folder = os.environ.get("GPO_DATA")
    if not folder or not Path(folder).is_dir():
        raise SystemExit("Set GPO_DATA to the folder with the real data sets.")
    for name in ("gsm8k", "bbh", "mmlu", "math"):
        grade(name, gpo.make("task", name), count)
    math_verify_directly(gpo.make("task", "math"), count)

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path("reasoner"))

    def load_and_render() -> None:
        left = count
        while left > 0:
            task = gpo.make("task", "bbh")
            for problem in task.problems("test")[:left]:
                render(task.prompt(problem), tokenizer)
                left -= 1

    timed("load and render bbh", count, load_and_render)


if __name__ == "__main__":
    main()
