"""Accuracy of a model on the nine sub-tasks, sampled at temperature 1: `python benchmarks/reasoner.py`.

Real questions where there is a data folder (GPO_DATA) or the hub, with 95% intervals by bootstrap over questions.
"""

from __future__ import annotations

import argparse
import time

import gpo
from gpo.reasoner.families import FAMILIES
from gpo.rollout.sampler import Sampler, question_start
from gpo.statistics import bootstrap_mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reasoner")
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"])
    parser.add_argument("--questions", type=int, default=250, help="of each sub-task")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    engine = gpo.make("engine", "hf", model=options.model)
    task = gpo.make("task", "reasoner")
    problems = task.problems(options.split)
    print(f"{options.model}, {options.split} questions, {options.samples} samples, temperature {options.temperature}")
    print("| sub-task | questions | source | accuracy | 95% interval | tokens | steps |")
    print("|---|---|---|---|---|---|---|")
    every: list[list[float]] = []
    total, began = 0, time.perf_counter()
    for name in FAMILIES:
        asked = [problem for problem in problems if problem.metadata["subtask"] == name][: options.questions]
        known = {problem.id: problem for problem in asked}
        sampler = Sampler(engine, task, known, temperature=options.temperature, max_tokens=900)
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
