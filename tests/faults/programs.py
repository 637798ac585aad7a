"""The small programs that faults are injected into, and what they leave that must not depend on faults."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.evaluation.evaluation import Evaluation, EvaluationConfig
from gpo.experiment.reuse import take_samples
from gpo.experiment.run import Run
from gpo.suites.cells import SuiteRuns
from gpo.suites.settings import cells_of
from gpo.suites.suite import read_suite
from gpo.toy import ChainEngine
from gpo.types import Completion, Group, Pair, RoundContext, Score, Start, Trajectory
from toy import ToyMethod, ToyTask, toy_config


@dataclass
class ToyPairs(ToyMethod):
    """The toy method on preference pairs: learns from what was chosen."""

    trains_on: ClassVar[Literal["pairs"]] = "pairs"  # type: ignore[assignment]

    def update(self, pairs: Sequence[Pair], context: RoundContext = RoundContext()) -> dict[str, float]:  # type: ignore[override]
        return super().update([chosen(pair) for pair in pairs], context)


def chosen(pair: Pair) -> Group:
    """The chosen response as a right trajectory."""
    start = Start(pair.problem_id, pair.prompt_ids, pair.prefix_ids)
    completion = Completion(pair.chosen_ids, pair.chosen, "stop")
    return Group(start, (Trajectory("", start, completion, Score(1.0, "right"), ()),))


METHODS = {"online": "toy:ToyMethod", "offline": "programs:ToyPairs"}


def small_run(kind: str = "online", **changes: Any) -> RunConfig:
    """Three arms, two rounds, every stage; some tenths of a second."""
    settings: dict[str, Any] = {
        "method": Spec("method", METHODS[kind]),
        "problems": 2,
        "test_problems": 1,
        "budget": 4.0,
        "rounds": 2,
        "reset_fraction": 0.5,
        "rollouts": 3,
        "test_samples": 2,
        "locate_per_problem": 1,
        "chunk": 8,
        "max_tokens": 100,  # of which the search's share holds several
    }
    return toy_config(**settings | changes)


def run(directory: Path, method: str) -> None:
    """A whole run."""
    Run(directory, small_run(method)).all()


def evaluate(directory: Path) -> None:
    """Two models on the same questions, as `gpo evaluate` does it."""
    models = {"one": ChainEngine(), "two": ChainEngine(padding=1)}
    Evaluation(directory, EvaluationConfig(models=models, task=ToyTask(), samples=3, chunk=6)).all()


def reuse(directory: Path) -> None:
    """The samples of a run for another method, as `gpo run DIRECTORY --samples RUN` does it."""
    source = directory.with_name(f"{directory.name}-source")
    Run(source, small_run("online", rounds=1)).reset("gpo")
    config = take_samples(source, directory, {"method": METHODS["offline"]})
    Run(directory, config).all()


SUITE = """
seeds = [0]

[run]
task = "toy:ToyTask"
"task.size" = 2
engine = "chain"
rollouts = 3
locate_per_problem = 1
reset_rollouts = 2
test_samples = 2
test_problems = 1
"arms.gpo" = "monte_carlo"
budget = 4

[methods.toy]
method = "toy:ToyMethod"
[methods.weak]
method = "toy:ToyMethod"
"method.strength" = 1.0
"""


def suite(directory: Path) -> None:
    """Two cells, the second on the samples of the first, as `gpo compare` runs them."""
    file = directory.with_name("toy.toml")  # its name is in every row
    file.write_text(SUITE)
    read = read_suite(str(file))
    runs = SuiteRuns(read, directory)
    runs.run(cells_of(read, runs.outcomes(), 0))


PROGRAMS: dict[str, Callable[[Path], None]] = {
    "online": partial(run, method="online"),
    "offline": partial(run, method="offline"),
    "evaluate": evaluate,
    "reuse": reuse,
    "suite": suite,
}


def work(directory: Path, program: str = "online") -> None:
    PROGRAMS[program](directory)


def results_of(directory: Path) -> dict[str, bytes]:
    """Every file of a finished run but times and locks; folders do not count."""
    left_out = ("events.jsonl", "pieces.json", ".lock")
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in left_out)
    return {str(path.relative_to(directory)): _without_times(path) for path in files}


def _without_times(path: Path) -> bytes:
    content = path.read_bytes()
    return re.sub(rb'"seconds": {[^}]*}', b"", content) if path.name == "results.jsonl" else content


def differing(left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    """The files that are not the same in both."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
