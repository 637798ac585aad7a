"""Components by others that break: one clear error that names the component, nothing lost, and nothing wrong kept."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from typing import Any, ClassVar

import pytest
from programs import differing, results_of, small_run

from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.contracts import Sample
from gpo.errors import GPOError
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.experiment.run import Run
from gpo.rollout import scoring
from gpo.tasks.file import File
from gpo.toy import ChainEngine
from gpo.types import Completion, Evidence, Group, Problem, Request, RoundContext, Score, StepScores, Trajectory
from toy import ToyMethod, ToyTask

Survived = Callable[[str, int], None]
Answers = list[list[Completion]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpo.report.plots.write_plots", lambda *_: None)
    monkeypatch.setattr("os.fsync", lambda _: None)


class Fault:
    """What is broken now, and from which call on."""

    engine: Callable[[Sequence[Request], Answers], Answers] | None = None
    estimator: Callable[[list[StepScores]], list[StepScores]] | None = None
    method: Callable[[], dict[str, float]] | None = None
    score: Callable[[], object] | None = None
    calls: ClassVar[Counter[str]] = Counter()

    @classmethod
    def due(cls, what: str, after: int) -> bool:
        cls.calls[what] += 1
        return getattr(cls, what) is not None and cls.calls[what] > after


@pytest.fixture(autouse=True)
def nothing_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for what in ("engine", "estimator", "method", "score"):
        monkeypatch.setattr(Fault, what, None)
    monkeypatch.setattr(Fault, "calls", Counter())


@dataclass
class MyEngine(ChainEngine):
    def generate(self, requests: Sequence[Request], *, temperature: float = 1.0, logprobs: bool = False) -> Answers:
        answers = super().generate(requests, temperature=temperature, logprobs=logprobs)
        return Fault.engine(requests, answers) if Fault.due("engine", 4) else answers  # type: ignore[misc]


@dataclass(frozen=True)
class MyEstimator(MonteCarlo):
    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = Evidence()
    ) -> list[StepScores]:
        scores = super().__call__(trajectories, sample, evidence)
        return Fault.estimator(scores) if Fault.due("estimator", 1) else scores  # type: ignore[misc]


@dataclass
class MyMethod(ToyMethod):
    def update(self, groups: Sequence[Group], context: RoundContext = RoundContext()) -> dict[str, float]:
        metrics = super().update(groups, context)
        return Fault.method() if Fault.due("method", 1) else metrics  # type: ignore[misc]

    def save(self, path: Path) -> None:
        if Fault.method is not save_nothing:
            super().save(path)


@dataclass(frozen=True)
class MyTask(ToyTask):
    score_seconds: float = 0.2

    def score(self, problem: Problem, text: str) -> Score:
        return Fault.score() if Fault.due("score", 4) else super().score(problem, text)  # type: ignore[misc, return-value]


def mine() -> RunConfig:
    here = Path(__file__).stem
    return small_run(
        engine=Spec("engine", f"{here}:MyEngine"),
        method=Spec("method", f"{here}:MyMethod"),
        task=Spec("task", f"{here}:MyTask"),
        arms={"plain": "none", "gpo": Spec("estimator", f"{here}:MyEstimator")},
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("mine") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gpo.report.plots.write_plots", lambda *_: None)
        Run(run, mine()).all()
    return results_of(run)


def raising(*_: Any) -> Any:
    raise KeyError("weights")


def each(change: Callable[[Completion], Completion]) -> Callable[[Sequence[Request], Answers], Answers]:
    return lambda _, answers: [[change(completion) for completion in answer] for answer in answers]


def longer(completion: Completion) -> Completion:
    return replace(completion, token_ids=completion.token_ids * 100, logprobs=None)


ENGINES: dict[str, Any] = {
    "raises": raising,
    "too few lists": lambda _, answers: answers[:-1],
    "too many lists": lambda _, answers: [*answers, answers[0]],
    "too few completions": lambda _, answers: [answer[:-1] for answer in answers],
    "nothing": lambda *_: None,
    "too long": each(longer),
    "foreign tokens": each(lambda c: replace(c, token_ids=(10**6, *c.token_ids[1:]))),
    "negative tokens": each(lambda c: replace(c, token_ids=(-1, *c.token_ids[1:]))),
    "log-probabilities of NaN": each(lambda c: replace(c, logprobs=(nan,) * len(c.token_ids))),
    "log-probabilities above 0": each(lambda c: replace(c, logprobs=(1.0,) * len(c.token_ids))),
    "an unknown reason to end": each(lambda c: replace(c, finish_reason="tired")),
    "no tokens": each(lambda c: Completion((), "", "stop", () if c.logprobs is not None else None)),
    "an end without a stop token": each(lambda c: replace(c, token_ids=(*c.token_ids[:-1], 3), finish_reason="stop")),
}
ESTIMATORS: dict[str, Any] = {
    "raises": raising,
    "too few": lambda scores: scores[:-1],
    "another order": lambda scores: [*scores, scores[0]],
    "nothing": lambda _: None,
    "miscounts": lambda scores: [replace(score, tokens=score.tokens + 1) for score in scores],
    "a value of 2": lambda scores: [replace(score, values=(2.0, *score.values[1:])) for score in scores],
    "an infinite value": lambda scores: [replace(score, values=(inf, *score.values[1:])) for score in scores],
    "too few values": lambda scores: [replace(score, values=score.values[1:]) for score in scores],
    "too few advantages": lambda scores: [replace(score, advantages=()) for score in scores],
    "a step that is not there": lambda scores: [replace(score, critical_step=99) for score in scores],
    "an advantage of its own": lambda scores: [
        replace(score, advantages=(5.0, *score.advantages[1:])) for score in scores
    ],
    "a reset behind the last step": lambda scores: [
        replace(score, reset_boundary=len(score.advantages)) for score in scores
    ],
    "a boundary that is not there": lambda scores: [replace(score, reset_boundary=-1) for score in scores],
}


def save_nothing() -> dict[str, float]:
    return {"steps": 1.0}


METHODS: dict[str, Any] = {
    "raises": raising,
    "a loss of NaN": lambda: {"steps": 1.0, "loss": nan},
    "an infinite loss": lambda: {"steps": 1.0, "train_loss": inf},
    "no metrics": lambda: None,
    "saves nothing": save_nothing,
}
FAULTS = [
    *(("engine", name, fault) for name, fault in ENGINES.items()),
    *(("estimator", name, fault) for name, fault in ESTIMATORS.items()),
    *(("method", name, fault) for name, fault in METHODS.items()),
]


@pytest.mark.parametrize(("what", "name", "fault"), FAULTS, ids=[f"{what} {name}" for what, name, _ in FAULTS])
def test_a_component_that_breaks_is_named_and_nothing_is_lost(
    what: str, name: str, fault: Any, expected: dict[str, bytes], tmp_path: Path, survived: Survived
) -> None:
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(Fault, what, staticmethod(fault))
        with pytest.raises(GPOError) as told:
            Run(tmp_path, mine()).all()
    assert f"The {what}" in str(told.value)
    kept = [row for file in tmp_path.rglob("*.jsonl") for row in file.read_bytes().splitlines()]
    assert kept
    Run(tmp_path, mine()).all()
    assert not differing(results_of(tmp_path), expected)
    survived("component of others that breaks", 1)


def hang() -> object:
    while True:
        with suppress(Exception):
            time.sleep(0.05)


SCORES: dict[str, tuple[Callable[[], object], str]] = {
    "raises": (raising, "KeyError"),
    "hangs": (hang, "TimeoutError"),
    "hangs in a regular expression": (lambda: re.match(r"(a+)+$", "a" * 60 + "b"), "TimeoutError"),
    "NaN": (lambda: Score(nan, "right"), "ValueError"),
    "2.0": (lambda: Score(2.0, "right"), "ValueError"),
    "None": (lambda: None, "TypeError"),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_grader_that_breaks_makes_failed_rollouts_which_nothing_averages(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    monkeypatch.setattr(scoring, "_told", set())
    given, kind = SCORES[name]
    Fault.score = staticmethod(given)
    run = Run(tmp_path, small_run(task=MyTask(), arms={"plain": "none"}, rounds=1))
    groups = run.rollout()
    scores = [t.score for group in groups for t in group.trajectories]
    assert [score.verdict == "failed" for score in scores] == [i >= 4 for i in range(len(scores))]
    assert all(score.value is None and score.reason.startswith(kind) for score in scores[4:] if score.reason)
    assert all(score.reason for score in scores[4:])
    survived("grader that breaks", len(scores) - 4)


def test_the_limit_of_a_grader_lets_go_of_the_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    before = signal.getsignal(signal.SIGALRM)
    assert scoring.within(5.0, lambda: 7) == 7
    with pytest.raises(TimeoutError, match=r"no verdict within 0\.05 s"):
        scoring.within(0.05, hang)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_task_says_how_long_its_grading_takes() -> None:
    class Parallel(ToyTask):
        parallel = 2

    assert scoring.limit_of(ToyTask()) == scoring.LIMIT
    assert scoring.limit_of(MyTask(score_seconds=3.0)) == 3.0
    assert scoring.limit_of(Parallel()) is None
    assert scoring.limit_of(File(form="math")) is None
    assert scoring.limit_of(File(form="text")) == scoring.LIMIT  # graded in this process
