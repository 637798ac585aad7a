"""Mathematical answers, and what the worker processes survive."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpo.tasks import math_grading
from gpo.tasks.math_grading import Comparison, Workers, compare_math, math_answer, score_math

BOMB = "9^{9^{9^9}}"


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(size=2, seconds=0.5)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"\tfrac12"),
        (r"2\sqrt{5}", r"\sqrt{20}"),
        ("x=5", "5"),
        ("p - q", "-q+p"),
        ("(3,4]", r"\left(3, 4\right]"),
        (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}"),
        (r"\text{Evelyn}", "evelyn"),
        (r"\text{(C)}", "C"),
        ("52_8", "52_{8}"),
        ("52_8", "52"),
        (r"864 \mbox{ inches}^2", "864"),
        ("5", "$x = 5$"),
    ],
)
def test_equal_answers(reference: str, answer: str) -> None:
    assert compare_math(reference, answer).verdict == "right"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{1}{2}", "0.51"),
        (r"2\sqrt{5}", r"\sqrt{21}"),
        ("p - q", "q - p"),
        ("(3,4]", "(3,4)"),
        (r"\text{Evelyn}", "Eve"),
        (r"\text{(C)}", "D"),
        ("52_8", "52_9"),
        (r"864 \mbox{ inches}^2", r"864 \text{ inches}^3"),
        (r"\frac{1}{2}", r"\frac{1}{"),
    ],
)
def test_different_answers(reference: str, answer: str) -> None:
    assert compare_math(reference, answer).verdict == "wrong"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed{\frac{1}{2}}$. I checked that this answer is correct", r"\frac{1}{2}"),
        ("Hence the answer is $x^2$.", "x^2"),
        ("Therefore\n$\\frac{1}{2}$.", r"$\frac{1}{2}$"),
        ("Therefore\n12", "12"),
        (r"The answer is **\frac{1}{2}**", r"\frac{1}{2}"),
        (r"**Answer:** \sqrt{2}", r"\sqrt{2}"),
        (r"**The answer is \sqrt{2}.**", r"\sqrt{2}"),
        (r"#### **\sqrt{2}**", r"\sqrt{2}"),
        ("The answer is `p - q`.", "p - q"),
        (r"The answer is **90^\circ** degrees, as drawn.", r"90^\circ"),
        ("The answer is **3** or **4**.", "3** or **4"),
        ("The answer is **3** or four.", "3** or four"),
        ("The answer is x**2", "x**2"),
        ("The answer is z^*.", "z^*"),
        ("**The answer is z^***", "z^*"),
        ("The answer is ** p - q **", "p - q"),
        ("The answer is ***3*** apples.", "3"),
        ("The answer is 5!", "5!"),
        ("The answer is p - q, as shown above.", "p - q"),
        ("The answer is **3**, since it is odd.", "3"),
        ("The answer is 3, so 4.", "3, so 4"),
        ("The answer is a, b", "a, b"),
        (r"The answer is $\$36$ a day.", r"\$36"),
        ("Therefore\n**$x^2$**", "$x^2$"),
        ("Therefore\n**12**", "12"),
        ("I give up", None),
        (r"\boxed{}", None),
        (r"The answer is $\boxed{7", None),
        (r"The answer is \boxed{}.", None),
        (r"$\boxed{}$", None),
        ("#### 5\nThe answer is \\boxed{7", "5"),
        (r"\boxed{ANSWER}", None),
        ("So the answer is NUMBER.", None),
        ("<answer> $7$ </answer>", "7"),
        (r"<think>\boxed{1}", None),
        (r"\boxed{" + "{" * 50 + "}" * 50 + "}", None),
        ("\\boxed{" + "1+" * 5_000 + "1}", None),
    ],
)
def test_answers_of_responses(text: str, answer: str | None) -> None:
    assert math_answer(text) == answer


@pytest.mark.parametrize(
    "form", ["The answer is **{}**", "#### **{}**", "The answer is `{}`.", "The answer is **{}** units."]
)
@pytest.mark.parametrize("reference", [r"90^\circ", "52_8", r"15\mbox{ cm}^2", "58,500", "p - q", r"\frac{1}{2}"])
def test_marks_of_markdown_make_no_answer_right_or_wrong(form: str, reference: str) -> None:
    """Math-Verify reads 90^\\circ7** as 90."""
    assert score_math(reference, form.format(reference)).verdict == "right"
    assert score_math(reference, form.format(f"{reference}7")).verdict == "wrong"


def test_right_wrong_ungradable_and_failed_are_four_verdicts() -> None:
    responses = [r"\boxed{\sqrt{20}}", r"\boxed{\sqrt{21}}", "no idea", rf"\boxed{{{BOMB}}}"]
    scores = [score_math(r"2\sqrt{5}", text, seconds=1.0) for text in responses]
    assert [score.verdict for score in scores] == ["right", "wrong", "ungradable", "failed"]
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, None]
    assert [score.reason for score in scores] == [None, None, None, "TimeoutError: no verdict within 1 s"]


def test_without_a_reference_answers_are_read_and_none_is_right() -> None:
    scores = [score_math("", text) for text in (r"\boxed{1/2}", r"\boxed{0.5}", "I give up")]
    assert [score.verdict for score in scores] == ["wrong", "wrong", "ungradable"]
    assert [score.answer for score in scores] == ["1/2", "1/2", None]


def test_a_failure_says_what_has_failed(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers.compare("", "$x$").reason == "DataError: no expression in the reference ''"
    monkeypatch.setattr(math_grading.sys, "executable", "/bin/false")
    assert Workers(size=1).compare("x", "$x$").reason == "ChildProcessError: the grading process ended with code 1"


def test_files_of_the_folder_it_runs_in_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('not yours')")
    monkeypatch.chdir(tmp_path)
    pool = Workers(size=1)
    assert pool.compare("x", "$x$").verdict == "right"
    pool.close()


def test_an_answer_over_its_time_fails_and_the_next_is_graded(workers: Workers) -> None:
    assert workers.compare("x", "$x$").verdict == "right"
    began = time.perf_counter()
    assert workers.compare("1", f"${BOMB}$").verdict == "failed"
    assert time.perf_counter() - began < 0.5 + math_grading.GRACE_SECONDS + 2
    assert workers.restarts == 1
    assert workers.compare("x", "$y$").verdict == "wrong"


def test_what_failed_once_is_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may have been the reason."""
    found = iter([Comparison("failed", "TimeoutError: no verdict within 5 s"), Comparison("right")])
    monkeypatch.setattr(Workers, "compare", lambda self, reference, answer: next(found))
    pair = (r"\int_0^1 x^7 dx", r"\frac{1}{8} + 0")
    assert [compare_math(*pair).verdict for _ in range(3)] == ["failed", "right", "right"]


def test_a_worker_that_ignores_its_own_limit_is_killed_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_grading, "GRACE_SECONDS", -99.0)  # the limit of this process comes first
    pool = Workers(size=1, seconds=100.0)
    assert pool.compare("1", f"${BOMB}$").verdict == "failed"
    monkeypatch.undo()
    assert pool.compare("x", "$x$").verdict == "right"
    pool.close()


def test_a_worker_that_was_killed_is_replaced(workers: Workers) -> None:
    assert workers.compare("x", "$x$").verdict == "right"
    for child in _children():
        os.kill(child, signal.SIGKILL)
    # It died of something else than this pair, so that another one is asked.
    assert [workers.compare("x", "$x$").verdict for _ in range(2)] == ["right", "right"]
    assert workers.restarts == 1


def test_workers_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_grading, "JOBS_PER_WORKER", 2)
    pool = Workers(size=1)
    assert [pool.compare("x", "$x$").verdict for _ in range(3)] == ["right"] * 3
    assert pool.restarts == 1
    pool.close()


def test_a_python_that_cannot_start_fails_every_answer_and_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_grading.sys, "executable", "/bin/false")
    pool = Workers(size=1)
    assert pool.compare("x", "$x$").verdict == "failed"


def test_any_thread_may_grade_and_no_more_processes_run_than_allowed(workers: Workers) -> None:
    before = set(_children())
    handler = signal.getsignal(signal.SIGALRM)
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda i: workers.compare(f"x+{i}", f"${i}+x$").verdict, range(60)))
        assert len(set(_children()) - before) <= 2
    assert verdicts == ["right"] * 60
    assert signal.getsignal(signal.SIGALRM) is handler


def test_no_process_file_or_thread_is_left_after_ten_thousand_hostile_answers() -> None:
    score_math("x", r"\boxed{y}")
    cheap = [
        r"\boxed{" + "{" * 9_000,
        "{" * 10_000_000,
        r"\boxed{" + r"\frac{1}{" * 40 + "2" + "}" * 41,
        r"\boxed{\sqrt[" + "9" * 1_900 + "]{2}",
        "the answer is " * 2_000,
        "\\boxed{\x00\ud800}",
        "$" * 3_000,
    ]
    files, children, threads = _files(), len(_children()), threading.active_count()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(10_000):
        text = f"{i}" + cheap[i % len(cheap)] if i > 20 or i % len(cheap) != 1 else cheap[1]
        text = text if i < 20 else text[: 20_000 if i < 100 else 5_000]
        assert not score_math(r"\sqrt{2}", text).right
    for i in range(4):
        assert score_math(str(i + 1), rf"\boxed{{{BOMB}}}", seconds=0.3).verdict == "failed"
    for pool_arguments in ((2, 5.0), (2, 0.3)):
        math_grading.shared_workers(*pool_arguments, os.getpid()).close()
    gc.collect()
    assert _files() <= files
    assert len(_children()) <= children
    assert threading.active_count() <= threads
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 150_000  # KiB; one answer of 10 MB is copied a few times


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom gpo.tasks.math_grading import Workers\n"
        "w = Workers(1, 2.0)\nw.compare('x', '$x$')\n"
        "print(w._idle.queue[0]._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    import sys

    ended = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    pid = int(ended.stdout)
    deadline = time.monotonic() + 10
    while _running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running(pid)


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children() -> list[int]:
    """Running worker processes of this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))
