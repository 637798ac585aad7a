"""Trajectories with the values at their boundaries: the grounds on which `search.py` ranks the critical-step searches.

Near-exact: trajectories of the embedded reasoner over its nine sub-tasks. Human: traces of a larger model in
BIG-Bench-Mistake, whose first mistake people marked (a program for Dyck). A trace is tokenised as it is, steps
joined by newlines, and is what the reasoner would have written.

A `Ground` file has one trajectory a line. Everything follows from its seed and the reasoner's weights.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gpo.engines.hf import HFEngine
from gpo.prompting import question_start
from gpo.reasoner.dyck import QUESTION
from gpo.sampling import Sampler, request_seed
from gpo.store import Chunks, from_json, to_json
from gpo.tasks.generated import Generated
from gpo.types import Completion, Problem, Request, Score, Task, Trajectory

MAX_TOKENS = 900  # of a response
CHUNK = 16  # trajectories valued between two writes
HUMAN = ("dyck_languages", "tracking_shuffled_objects", "multistep_arithmetic")


@dataclass(frozen=True, slots=True)
class Valued:
    """A trajectory, and how many of the rollouts from each boundary but the last were right."""

    problem: Problem
    trajectory: Trajectory
    right: tuple[int, ...]  # (K,)
    rollouts: tuple[int, ...]  # (K,) graded ones
    tokens: tuple[float, ...]  # (K,) mean tokens of a rollout
    marked: int | None = None  # the step that people marked as the first mistake

    @property
    def values(self) -> tuple[float, ...]:
        """(K + 1,) the last is the observed reward."""
        reward = self.trajectory.score.value
        assert reward is not None, "graded when the ground was made"
        return (*(r / n for r, n in zip(self.right, self.rollouts, strict=True)), reward)


def near_exact(engine: HFEngine, per_outcome: int, seed: int) -> tuple[Task, list[tuple[Problem, Trajectory, None]]]:
    """`per_outcome` right and as many wrong trajectories of each sub-task, at most one of each kind for a question."""
    task = Generated(seed=seed + 1)  # not the questions that a run trains on by default
    problems = task.problems("dev")
    sampler = Sampler(
        engine, task, {p.id: p for p in problems}, max_tokens=MAX_TOKENS, seed=seed, stream="ground", logprobs=True
    )
    groups = sampler([question_start(problem, task, engine.tokenizer) for problem in problems], 4)
    kept: Counter[tuple[str, bool]] = Counter()
    chosen: list[tuple[Problem, Trajectory, None]] = []
    for problem, group in zip(problems, groups, strict=True):
        for right in (True, False):
            kind = (str(problem.metadata["subtask"]), right)
            found = [t for t in group.trajectories if t.score.right == right and len(t.step_ends) > 1]
            if found and kept[kind] < per_outcome:
                kept[kind] += 1
                chosen.append((problem, found[0], None))
    return task, chosen


def human(engine: HFEngine, folder: Path, limit: int | None, seed: int) -> tuple[
    Task, list[tuple[Problem, Trajectory, int | None]]
]:  # fmt: skip
    """The traces of the sub-tasks that the reasoner knows, in an order drawn from `seed`; `limit` of each."""
    task = Generated()
    traces: list[tuple[Problem, Trajectory, int | None]] = []
    for subtask in HUMAN:
        rows = [json.loads(line) for line in (folder / f"{subtask}.jsonl").read_text().splitlines()]
        order = Random(seed).sample(range(len(rows)), len(rows))
        for number in order[:limit]:
            row = rows[number]
            question = QUESTION + row["input"] if subtask == "dyck_languages" else row["input"]
            problem = Problem(f"{subtask}/{number}", question, row["target"], {"subtask": subtask})
            traces.append((problem, as_trajectory(engine, task, problem, row["steps"]), row["mistake_index"]))
    return task, traces


def as_trajectory(engine: HFEngine, task: Task, problem: Problem, steps: Sequence[str]) -> Trajectory:
    """A written solution as if the reasoner had sampled it."""
    ids: list[int] = []
    ends: list[int] = []
    for index, step in enumerate(steps):
        ids += engine.tokenizer.encode(step + "\n" * (index + 1 < len(steps)), add_special_tokens=False)
        ends.append(len(ids))
    ids.append(engine.tokenizer.eos_token_id)
    ends[-1] += 1
    text = "\n".join(steps)
    return Trajectory(
        id=problem.id,
        start=question_start(problem, task, engine.tokenizer),
        completion=Completion(tuple(ids), text, "stop"),
        score=task.score(problem, text),
        step_ends=tuple(ends),
    )


def value(
    engine: HFEngine, task: Task, rows: Sequence[tuple[Problem, Trajectory, int | None]], n: int, seed: int
) -> list[Valued]:
    """n rollouts from every boundary but the last. Equal rollouts are graded once."""
    starts = [(problem, t.prefix(k)) for problem, t, _ in rows for k in range(len(t.step_ends))]
    requests = [
        Request(
            start.token_ids,
            n,
            min(MAX_TOKENS - len(start.prefix_ids), engine.context_length - len(start.token_ids)),
            request_seed(seed, "values", start.token_ids, 0),
        )
        for _, start in starts
    ]
    results: Iterator[tuple[int, int, float]] = iter(
        [
            graded(engine, task, problem, start.prefix_ids, completions)
            for (problem, start), completions in zip(starts, engine.generate(requests), strict=True)
        ]
    )
    valued = []
    for problem, trajectory, marked in rows:
        found = [next(results) for _ in trajectory.step_ends]
        right, counts, tokens = (tuple(column) for column in zip(*found, strict=True))
        valued.append(Valued(problem, trajectory, right, counts, tokens, marked))
    return valued


def graded(
    engine: HFEngine, task: Task, problem: Problem, prefix: tuple[int, ...], completions: Sequence[Completion]
) -> tuple[int, int, float]:
    """How many are right, how many there are, and their mean number of tokens."""
    right = 0
    for ids, times in Counter(completion.token_ids for completion in completions).items():
        text = engine.tokenizer.decode(prefix + ids, skip_special_tokens=True)
        score: Score = task.score(problem, text)
        right += times * score.right
    return right, len(completions), sum(len(c.token_ids) for c in completions) / len(completions)


def made(
    path: Path, engine: HFEngine, task: Task, rows: Sequence[tuple[Problem, Trajectory, int | None]], n: int, seed: int
) -> list[Valued]:
    """The ground at `path`, from where it was left; compressed beside it once it is whole."""
    packed = path.with_suffix(".jsonl.gz")
    if packed.exists():
        return load(packed)
    file = Chunks(path, Valued)
    done = file.read()
    while len(done) < len(rows):
        new = value(engine, task, rows[len(done) : len(done) + CHUNK], n, seed)
        file.append(new)
        done += new
        print(f"{path.name}: {len(done)} of {len(rows)} trajectories", flush=True)
    with gzip.open(packed, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(to_json(row)) + "\n" for row in done)
    return done


def load(path: Path) -> list[Valued]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [from_json(Valued, json.loads(line)) for line in lines]
