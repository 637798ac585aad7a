"""Makes the grounds on which `search.py` ranks the critical-step searches: trajectories with values at each boundary.

    python benchmarks/search_grounds.py near_exact|human|marked [--rollouts N] [--out benchmarks/results]
    python benchmarks/search_grounds.py prose|prose_large --model qwen-coder_DIRECTORY

near_exact: right and wrong trajectories of the embedded reasoner for each of its nine sub-tasks, as many of each as
`GROUNDS` says: fewer where they take long.
human: traces of a larger model in BIG-Bench-Mistake, whose first mistake people marked (a program for Dyck). A trace is
tokenised as it is, steps joined by newlines.
marked: many more of these traces, valued by the reader, which is the reasoner trained on to go on from solutions that
others began, for `search_human.py`.
prose: right and wrong solutions of Qwen2.5-Coder-0.5B-Instruct to short questions of GSM8K's training split that it
solves sometimes, one a question, in bfloat16 at temperature 0.7.
prose_large: more of them, from other questions, on a GPU.

At least N rollouts (512; 16 for traces, 32 and 64 for prose) pass every boundary but the last: those that start there,
and those from before it that reproduce the trajectory up to it. What is kept of them is where they left the trajectory
and how they ended. A ground is one file with a trajectory a line; all follows from the seed and the weights (but for
rounding where they are bfloat16). A command that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import gzip
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from os import environ
from pathlib import Path
from random import Random

import numpy as np

from gpo.config.presets import model_path
from gpo.contracts import Task
from gpo.engines.hf import HFEngine
from gpo.estimators.branches import follow_probabilities
from gpo.experiment.traces import as_trajectories
from gpo.reasoner.dyck import QUESTION
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler, request_seed
from gpo.storage.chunks import Chunks
from gpo.storage.codec import from_json, to_json
from gpo.tasks.generated import Generated
from gpo.tasks.gsm8k import GSM8K
from gpo.types import Completion, Problem, Request, Trajectory

WEIGHTS = Path(model_path("reasoner"))
MAX_TOKENS = 900  # of a response
ROOM = 32  # tokens in which a rollout may be longer than a trace
QUESTIONS = 4  # questions for each trajectory of a kind, 4 samples each
CHUNK = 4  # trajectories valued between two writes
PROSE_QUESTIONS, PROSE_SAMPLES = 400, 8  # questions that are tried at most, and solutions sampled of each
PROSE_LINES = 2  # of the published solution, at most: longer ones are nearly never solved
PROSE_TOKENS, PROSE_TEMPERATURE = 200, 0.7
Row = tuple[Problem, Trajectory, int | None]


@dataclass(frozen=True)
class Valued:
    """A trajectory, and where rollouts from its boundaries left it."""

    problem: Problem
    trajectory: Trajectory
    started: tuple[int, ...]  # (K,) rollouts from each boundary
    departed: tuple[int, ...]  # (K,) of them all, those that left the trajectory within each step
    right: tuple[int, ...]  # (K,) of these, the right ones
    tokens: tuple[float, ...]  # (K,) their mean tokens, counted from the step's beginning; 0 where none left
    passed: tuple[int, ...]  # (K,) rollouts that passed each boundary, and how many of these were right
    passed_right: tuple[int, ...]
    marked: int | None = None  # the step that people marked as the first mistake

    @property
    def reward(self) -> float:
        value = self.trajectory.score.value
        assert value is not None, "graded when the ground was made"
        return value

    @cached_property
    def beside(self) -> np.ndarray:
        """(K,) U_k, the success rate of what left within step k; where nothing did, that of going on."""
        return self._recursion()[1]

    @cached_property
    def values(self) -> np.ndarray:
        """(K + 1,) V_k = p_k V_{k+1} + (1 - p_k) U_k, V_K the observed reward."""
        return self._recursion()[0]

    def _recursion(self) -> tuple[np.ndarray, np.ndarray]:
        follow = follow_probabilities(self.trajectory)
        values, beside = np.zeros(len(follow) + 1), np.zeros(len(follow))
        values[-1] = self.reward
        for k in reversed(range(len(follow))):
            beside[k] = self.right[k] / self.departed[k] if self.departed[k] else values[k + 1]
            values[k] = follow[k] * values[k + 1] + (1 - follow[k]) * beside[k]
        return values, beside


def near_exact(engine: HFEngine, subtask: str, each: int, seed: int) -> tuple[Task, list[Row]]:
    """`each` right and as many wrong trajectories of a sub-task, at most one of each kind for a question."""
    task = Generated(subtask, seed=seed + 1, dev_problems=QUESTIONS * each)  # not the questions a run trains on
    problems = task.problems("dev")
    sampler = Sampler(
        engine, task, {p.id: p for p in problems}, max_tokens=MAX_TOKENS, seed=seed, stream="ground", logprobs=True
    )
    groups = sampler([question_start(problem, task, engine.tokenizer) for problem in problems], 4)
    kinds: dict[bool, list[Row]] = {True: [], False: []}
    for problem, group in zip(problems, groups, strict=True):
        for right, rows in kinds.items():
            found = [t for t in group.trajectories if t.score.right == right and len(t.step_ends) > 1]
            if found and len(rows) < each:
                rows.append((problem, found[0], None))
    return task, [row for pair in zip_longest(*kinds.values()) for row in pair if row is not None]


def human(engine: HFEngine, subtask: str, each: int, seed: int) -> tuple[Task, list[Row]]:
    """Traces of a sub-task that the reasoner's context holds, in an order drawn from `seed`."""
    task = Generated()
    folder = Path(environ.get("GPO_DATA", Path(__file__).parents[2] / "shared/data")) / "big_bench_mistake"
    lines = (folder / f"{subtask}.jsonl").read_text().splitlines()
    traces: list[Row] = []
    for number in Random(seed).sample(range(len(lines)), len(lines)):
        row = json.loads(lines[number])
        question = QUESTION + row["input"] if subtask == "dyck_languages" else row["input"]
        problem = Problem(f"{subtask}/{number}", question, row["target"], {"subtask": subtask})
        [trace] = as_trajectories([problem], [row["steps"]], task, engine, room=ROOM)
        if trace is not None and len(trace.response_ids) <= MAX_TOKENS:
            traces.append((problem, trace, row["mistake_index"]))
        if len(traces) == each:
            break
    return task, traces


def prose(engine: HFEngine, subtask: str, each: int, seed: int) -> tuple[Task, list[Row]]:
    """`each` right and as many wrong solutions, in turn, of questions that had both in `PROSE_SAMPLES` samples."""
    task = GSM8K(examples=str(Path(__file__).parent / "prose_examples.jsonl"))
    short = [p for p in task.problems("train") if p.metadata["solution"].count("\n") <= PROSE_LINES]
    problems = [replace(p, metadata={"subtask": subtask}) for p in Random(seed).sample(short, PROSE_QUESTIONS)]
    sampler = Sampler(
        engine,
        task,
        {p.id: p for p in problems},
        temperature=PROSE_TEMPERATURE,
        max_tokens=PROSE_TOKENS,
        seed=seed,
        stream="ground",
        logprobs=True,
    )
    rows: list[Row] = []
    for begin in range(0, len(problems), 16):
        starts = [question_start(problem, task, engine.tokenizer) for problem in problems[begin : begin + 16]]
        for group in sampler(starts, PROSE_SAMPLES):
            wanted = len(rows) % 2 == 0  # right and wrong in turn
            ended = [t for t in group.trajectories if t.completion.finish_reason == "stop" and len(t.step_ends) > 1]
            found = [t for t in ended if t.score.right == wanted]
            if len({t.score.right for t in ended}) == 2:
                rows.append((sampler.problems[found[0].start.problem_id], found[0], None))
            if len(rows) == 2 * each:
                return task, rows
        print(f"prose: {begin + 16} questions, {len(rows)} solutions", flush=True)
    return task, rows


class Tally:
    """Rollouts of one trajectory so far."""

    def __init__(self, engine: HFEngine, task: Task, row: Row) -> None:
        self.engine, self.task = engine, task
        self.problem, self.trajectory, self.marked = row
        self.follow = follow_probabilities(self.trajectory)
        steps = len(self.follow)
        self.started, self.departed, self.right, self.tokens, self.passed, self.passed_right = np.zeros((6, steps), int)

    def missing(self, n: int) -> list[tuple[int, int]]:
        """(boundary, rollouts) so that each is expected to be passed by n, given those that started before it."""
        asks, coming = [], 0.0
        for k, follow in enumerate(self.follow):
            more = int(np.ceil(n - self.passed[k] - coming))
            if more > 0:
                asks.append((k, more))
                coming += more
            coming *= follow
        return asks

    def take(self, boundary: int, completions: Sequence[Completion]) -> None:
        """Equal rollouts are graded once."""
        start, ours = self.trajectory.boundaries, self.trajectory.response_ids
        prefix = ours[: start[boundary]]
        self.started[boundary] += len(completions)
        for ids, times in Counter(completion.token_ids for completion in completions).items():
            right = self.task.score(
                self.problem, self.engine.tokenizer.decode(prefix + ids, skip_special_tokens=True)
            ).right
            whole = prefix + ids
            same = next((i for i, (a, b) in enumerate(zip(ours, whole, strict=False)) if a != b), len(whole))
            step = bisect_right(self.trajectory.step_ends, same)
            self.passed[boundary : step + 1] += times
            self.passed_right[boundary : step + 1] += times * right
            if step < len(self.follow):
                self.departed[step] += times
                self.right[step] += times * right
                self.tokens[step] += times * (len(whole) - start[step])

    def valued(self) -> Valued:
        completion = self.trajectory.completion
        rounded = tuple(round(x, 5) for x in completion.logprobs or ())
        return Valued(
            problem=self.problem,
            trajectory=replace(self.trajectory, completion=replace(completion, logprobs=rounded)),
            started=tuple(self.started.tolist()),
            departed=tuple(self.departed.tolist()),
            right=tuple(self.right.tolist()),
            tokens=tuple((self.tokens / np.maximum(self.departed, 1)).round(1).tolist()),
            passed=tuple(self.passed.tolist()),
            passed_right=tuple(self.passed_right.tolist()),
            marked=self.marked,
        )


def value(engine: HFEngine, task: Task, rows: Sequence[Row], n: int, seed: int, plan: Ground) -> list[Valued]:
    """At least n rollouts through every boundary but the last."""
    tallies = [Tally(engine, task, row) for row in rows]
    again = 0
    while asks := [(tally, *ask) for tally in tallies for ask in tally.missing(n)]:
        requests = []
        for tally, boundary, more in asks:
            start = tally.trajectory.prefix(boundary)
            room = min(plan.max_tokens - len(start.prefix_ids), engine.context_length - len(start.token_ids))
            requests.append(Request(start.token_ids, more, room, request_seed(seed, "values", start.token_ids, again)))
        for (tally, boundary, _), completions in zip(
            asks, engine.generate(requests, temperature=plan.temperature), strict=True
        ):
            tally.take(boundary, completions)
        again += 1
    return [tally.valued() for tally in tallies]


Maker = Callable[[HFEngine, str, int, int], tuple[Task, list[Row]]]


@dataclass(frozen=True)
class Ground:
    """How it is made, and how many rollouts pass each boundary."""

    model: str
    rows: Maker
    rollouts: int
    outcomes: int  # that are told apart: right and wrong, or one
    plan: tuple[tuple[str, int], ...]  # sub-tasks in order, and how many of each outcome there are then
    max_tokens: int = MAX_TOKENS
    temperature: float = 1.0
    dtype: str = "auto"
    chunk: int = CHUNK
    seed: int = 0


GROUNDS = {
    "near_exact": Ground(
        "reasoner",
        near_exact,
        512,
        2,
        (
            ("boolean_expressions", 31),
            ("web_of_lies", 31),
            ("tracking_shuffled_objects_three_objects", 30),
            ("navigate", 30),
            ("multistep_arithmetic_two", 12),
            ("temporal_sequences", 5),
            ("tracking_shuffled_objects_five_objects", 5),
            ("dyck_languages", 5),
            ("tracking_shuffled_objects_seven_objects", 1),
        ),
    ),
    "human": Ground(
        "reasoner",
        human,
        16,
        1,
        (
            ("dyck_languages", 40),
            ("tracking_shuffled_objects", 20),
            ("multistep_arithmetic", 16),
        ),
    ),
    "marked": Ground(
        "reader",
        human,
        16,
        1,
        (
            ("multistep_arithmetic", 150),
            ("tracking_shuffled_objects", 150),
            ("dyck_languages", 100),
        ),
    ),
    "prose": Ground("", prose, 32, 2, (("gsm8k", 20),), PROSE_TOKENS, PROSE_TEMPERATURE, "bfloat16", 1),
    "prose_large": Ground("", prose, 64, 2, (("gsm8k", 30),), PROSE_TOKENS, PROSE_TEMPERATURE, "bfloat16", 60, 1),
}


def make(ground: str, folder: Path, rollouts: int | None = None, seed: int = 0, model: str = "") -> list[Valued]:
    """The ground, from where it was left; compressed once it is whole."""
    packed = folder / f"search_{ground}.jsonl.gz"
    if packed.exists():
        return load(packed)
    plan = GROUNDS[ground]
    engine = HFEngine(model_path(model or plan.model), dtype=plan.dtype)
    file = Chunks(folder / f"search_{ground}.jsonl", Valued)
    done = file.read()
    seed += plan.seed
    for subtask, each in plan.plan:
        if sum(row.problem.metadata["subtask"] == subtask for row in done) >= each * plan.outcomes:
            continue
        task, rows = plan.rows(engine, subtask, each, seed)
        known = {row.trajectory.id for row in done}
        rows = [row for row in rows if row[1].id not in known]
        for begin in range(0, len(rows), plan.chunk):
            new = value(
                engine, task, rows[begin : begin + plan.chunk], rollouts or plan.rollouts, seed + plan.seed, plan
            )
            file.append(new)
            done += new
            print(f"{ground}: {subtask}, {len(rows) - begin - len(new)} more, {len(done)} in all", flush=True)
    with gzip.open(packed, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(to_json(row)) + "\n" for row in done)
    return done


def load(path: Path) -> list[Valued]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [from_json(Valued, json.loads(line)) for line in lines]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ground", choices=list(GROUNDS))
    parser.add_argument("--rollouts", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="", help="the directory of the model, for prose")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = make(options.ground, options.out, options.rollouts, options.seed, options.model)
    print(f"{len(rows)} trajectories, {sum(sum(row.started) for row in rows):,} rollouts")


if __name__ == "__main__":
    main()
