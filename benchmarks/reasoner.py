"""Accuracy of a model on the nine sub-tasks, sampled at temperature 1: `python benchmarks/reasoner.py`.

Real questions where there is a data folder (GPO_DATA) or the hub, with 95% intervals by bootstrap over questions. With
`--ladder` generated development questions of a ladder of sizes of each family.
"""

from __future__ import annotations

import argparse
import time

import gpo
from gpo.reasoner.families import FAMILIES
from gpo.rollout.sampler import Sampler, question_start
from gpo.statistics import bootstrap_mean

LADDER = {
    "boolean_expressions": (4, 8, 12, 16, 24),
    "dyck_languages": (4, 8, 16, 24, 36, 48, 60, 90),
    "multistep_arithmetic_two": (1, 2, 3, 4, 6, 8),
    "navigate": (2, 4, 8, 14, 20),
    "web_of_lies": (2, 3, 5, 8, 12, 16),
    "temporal_sequences": (2, 4, 6, 8),
    "tracking_shuffled_objects_three_objects": (1, 3, 6, 12, 20),
    "tracking_shuffled_objects_five_objects": (1, 3, 6, 12, 20),
    "tracking_shuffled_objects_seven_objects": (1, 3, 6, 12, 20),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reasoner")
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"])
    parser.add_argument("--questions", type=int, default=250, help="of each sub-task")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--ladder", action="store_true", help="sizes of each family, generated questions")
    options = parser.parse_args()
    engine = gpo.make("engine", "hf", model=options.model)
    task = gpo.make("task", "reasoner")
    if options.ladder:
        tasks = {
            f"{name} {size}": gpo.make("task", "reasoner", sizes=f"{name} {size}", dev_problems=options.questions)
            for name, sizes in LADDER.items()
            for size in sizes
        }
        rows = {name: each.problems("dev") for name, each in tasks.items()}
    else:
        problems = task.problems(options.split)
        rows = {name: [p for p in problems if p.subtask == name][: options.questions] for name in FAMILIES}
    split = "dev" if options.ladder else options.split
    print(f"{options.model}, {split} questions, {options.samples} samples, temperature {options.temperature}")
    print("| sub-task | questions | source | accuracy | 95% interval | tokens | steps |")
    print("|---|---|---|---|---|---|---|")
    every: list[list[float]] = []
    total, began = 0, time.perf_counter()
    for name, asked in rows.items():
        known = {problem.id: problem for problem in asked}
        sampler = Sampler(engine, task, known, temperature=options.temperature, max_tokens=1000)
        groups = sampler([question_start(problem, task, engine.tokenizer) for problem in asked], options.samples)
        drawn = [trajectory for group in groups for trajectory in group.trajectories]
        scores = [[trajectory.score.value or 0.0 for trajectory in group.trajectories] for group in groups]
        interval = bootstrap_mean(scores)
        every += scores
        total += sampler.tokens
        length = sampler.tokens / len(drawn)
        steps = sum(len(trajectory.step_ends) for trajectory in drawn) / len(drawn)
        print(
            f"| {name} | {len(asked)} | {asked[0].metadata['source']} | {interval.estimate:.1%} "
            f"| {interval.lower:.1%} to {interval.upper:.1%} | {length:.0f} | {steps:.1f} |",
            flush=True,
        )
    interval = bootstrap_mean(every)
    seconds = time.perf_counter() - began
    print(f"| all | {len(every)} | | {interval.estimate:.1%} | {interval.lower:.1%} to {interval.upper:.1%} | | |")
    print(f"\n{total} sampled tokens in {seconds:.0f} s, {total / seconds:.0f} tokens/s")


if __name__ == "__main__":
    main()
