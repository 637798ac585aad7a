"""Whole tails against single steps: what a model gains from the same samples, by credit and learning rate.

    python benchmarks/credit.py DIRECTORY [--seeds 0] [--rates 1e-4,3e-4,1e-3] [--cells CELLS] [--results FILE]

For each seed a run of the embedded reasoner is sampled once (arms `plain` and `gpo`, as the demo had them). Then
each cell (seed, arm, credit, learning rate) trains DPO on that arm's pairs, about as many optimizer steps in each, and
answers 540 development questions four times. A line of JSON for each finished cell; those that are there are not done
again. About five minutes a cell on one core.

Beside credits (`tail`, `step`, `tree`) a cell may name the places whose pairs of whole tails are trained on, such as
`--cells gpo:tail,gpo:found,gpo:critical`: `found` are questions and found steps, `critical` found steps alone where a
question has one, `on_path` all but those whose value is far below the question's, `question` the questions alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from gpo.config.components import make
from gpo.config.options import resolve
from gpo.config.presets import model_path
from gpo.engines.allocation import keep_freed_memory
from gpo.engines.hf import HFEngine
from gpo.experiment.run import Run
from gpo.experiment.starts import Known
from gpo.methods.dpo import DPO
from gpo.preferences.pairs import build_pairs
from gpo.preferences.step_pairs import build_step_pairs
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.rollout.turns import evenly, in_turns
from gpo.storage.rounds import RoundState
from gpo.types import Group, ModelRef, Pair, PairSettings, RoundContext, StartKey, StepScores

PAIRS = 1700  # trained in each cell, over its epochs
CELLS = "gpo:tail,gpo:step,gpo:tree,plain:tree,plain:tail"
PLACES = ("found", "critical", "on_path", "question")
LOST = 0.15  # a place that is worth so much less than its question is lost

AS_IT_WAS = {"arms": "plain,gpo", "locate_share": "0.4", "reset_turns": "0"}  # the search and resets of then


def pairs_of(run: Run, arm: str, credit: str, seed: int) -> list[Pair]:
    groups, engine = RoundState.of(run.files, arm).groups(), run.engine()
    if credit in PLACES:
        scores = run.files.scores(arm).read()
        several = PairSettings(per_problem=None)
        pairs = build_pairs(
            groups, engine.tokenizer, settings=several, scores=scores, stop_ids=engine.stop_ids, seed=seed
        )
        return chosen_by_place(pairs, groups, scores, credit)
    if credit == "tail":
        scores = run.files.scores(arm).read()
        return build_pairs(groups, engine.tokenizer, scores=scores, stop_ids=engine.stop_ids, seed=seed)
    only = credit == "step"
    return build_step_pairs(groups, engine.tokenizer, stop_ids=engine.stop_ids, starts_only=only, seed=seed)


def chosen_by_place(
    pairs: Sequence[Pair], groups: Sequence[Group], scores: Sequence[StepScores], places: str
) -> list[Pair]:
    """At most as many of a problem as a run takes, in turns of its starts, from some places only."""
    parents = {trajectory.id: trajectory for group in groups for trajectory in group.trajectories}
    critical = {parents[s.trajectory_id].prefix(s.reset_boundary).key for s in scores if s.reset_boundary is not None}
    worth: dict[StartKey, Known] = {}
    for group in groups:
        worth[group.start.key] = worth.get(group.start.key, Known()).with_group(group)

    def value(key: StartKey) -> float:
        known = worth.get(key, Known())
        return known.right / known.graded if known.graded else 0.0

    found: dict[str, dict[tuple[int, ...], list[Pair]]] = {}
    for pair in pairs:
        found.setdefault(pair.problem_id, {}).setdefault(pair.prefix_ids, []).append(pair)
    chosen = []
    for problem, starts in found.items():
        prompt = next(iter(starts.values()))[0].prompt_ids
        inside = {prefix for prefix in starts if (problem, prompt, prefix) in critical}
        if places == "found":
            taken = inside | {()}
        elif places == "critical":
            taken = inside or {()}
        elif places == "question":
            taken = {()}
        else:
            least = value((problem, prompt, ())) - LOST
            taken = {prefix for prefix in starts if value((problem, prompt, prefix)) >= least}
        order = sorted(taken & starts.keys(), key=lambda prefix: prefix not in inside)
        chosen.append(in_turns([starts[prefix] for prefix in order])[: PairSettings().per_problem])
    return in_turns(chosen)


def accuracy(method: DPO, questions: int, samples: int) -> dict[str, Any]:
    """The share right on development questions, of all and by sub-task, and of each question."""
    task = make("task", "reasoner")
    problems = evenly(task.problems("dev"), questions)
    engine = HFEngine(method.policy.model, method.policy.tokenizer)
    sampler = Sampler(engine, task, {problem.id: problem for problem in problems}, seed=0, stream="evaluate")
    shares: list[float] = []
    for first in range(0, len(problems), 135):
        starts = [question_start(problem, task, engine.tokenizer) for problem in problems[first : first + 135]]
        shares += [sum(t.score.right for t in group.trajectories) / samples for group in sampler(starts, samples)]
    by_subtask: dict[str, list[float]] = {}
    for problem, share in zip(problems, shares, strict=True):
        by_subtask.setdefault(problem.subtask, []).append(share)
    means = {name: round(sum(each) / len(each), 4) for name, each in by_subtask.items()}
    return {"accuracy": round(sum(shares) / len(shares), 4), "subtasks": means, "each": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rates", default="1e-4,3e-4,1e-3")
    parser.add_argument("--cells", default=CELLS, help="arm:credit,... in their order")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/credit.jsonl"))
    chosen = parser.parse_args()
    keep_freed_memory()
    lines = chosen.results.read_text(encoding="utf-8").split("\n") if chosen.results.exists() else []
    done = {tuple(json.loads(line)["cell"]) for line in lines if line}
    model = ModelRef(model_path("reasoner"), "reasoner")
    cells = [tuple(cell.split(":")) for cell in chosen.cells.split(",")]
    seeds, rates = map(int, chosen.seeds.split(",")), map(float, chosen.rates.split(","))
    for seed, rate, (arm, credit) in product(seeds, rates, cells):
        if (seed, arm, credit, rate) in done:
            continue
        run = Run(chosen.directory / str(seed), resolve({**AS_IT_WAS, "seed": str(seed)}))
        run.reset(arm)
        pairs = pairs_of(run, arm, credit, seed)
        epochs = 2 if credit in ("tail", *PLACES) else max(1, round(PAIRS / len(pairs)))
        began = time.monotonic()
        method = DPO(learning_rate=rate, beta=1.0, epochs=epochs, seed=seed)
        metrics = method.update(pairs, RoundContext(model=model))
        row = {
            "cell": [seed, arm, credit, rate],
            "pairs": len(pairs),
            "epochs": epochs,
            "loss_tokens": sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs),
            "trained_tokens": metrics["trained_tokens"],
            "steps": metrics["steps"],
            "kl": metrics.get("kl"),
            "train_s": round(time.monotonic() - began, 1),
            **accuracy(method, 540, 4),
        }
        chosen.results.parent.mkdir(parents=True, exist_ok=True)
        with chosen.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print({key: value for key, value in row.items() if key != "each"}, flush=True)


if __name__ == "__main__":
    main()
