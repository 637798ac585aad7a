"""Does an adaptive search keep the engine's batches full? Sampled tokens a second, against uniform Monte Carlo's.

    python benchmarks/search_batches.py [--questions 3] [--repeats 3] [--rollouts 8] [--batch 8]

4 trajectories of each question of all nine sub-tasks. One process, the searches in turn, so that a busy machine slows
all of them; time is processor time, the search's own arithmetic included. A row is one token of one sequence in one
forward pass: continuations that have drawn the same tokens so far share theirs, and tokens that follow the trajectory
come from one pass over it. Two ratios are therefore told: sampled tokens a second, and rows a second, which says how
full the batches are whatever is shared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpo.contracts import Estimator
from gpo.engines.hf import HFEngine
from gpo.engines.library import BatchDecoder
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.tasks.generated import Generated
from search_grounds import WEIGHTS


@dataclass
class Counting(HFEngine):
    """An engine that counts its decoding steps, their rows, and its own processor time."""

    calls: int = 0
    steps: int = 0
    rows: int = 0
    seconds: float = 0.0

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        begin = time.process_time()
        found = super().generate(*arguments, **settings)
        self.seconds += time.process_time() - begin
        self.calls += 1
        return found

    def decoder(self) -> BatchDecoder:
        decoder = super().decoder()
        step = decoder.step

        def counted(tokens: Any) -> Any:
            self.steps += 1
            self.rows += len(tokens)
            return step(tokens)

        decoder.step = counted  # type: ignore[method-assign]
        return decoder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=3, help="of each sub-task, 4 trajectories each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rollouts", type=float, default=Adaptive.rollouts, help="the adaptive search's budget")
    parser.add_argument("--batch", type=int, default=Adaptive.batch, help="the adaptive search's rollouts in a round")
    options = parser.parse_args(arguments)
    engine = HFEngine(WEIGHTS)
    task = Generated(seed=3, dev_problems=options.questions)
    problems = {problem.id: problem for problem in task.problems("dev")}
    starts = [question_start(problem, task, engine.tokenizer) for problem in problems.values()]
    first = Sampler(engine, task, problems, stream="first", logprobs=True, max_tokens=900)(starts, 4)
    trajectories = [trajectory for group in first for trajectory in group.trajectories]
    searches: dict[str, Estimator] = {
        "monte_carlo": MonteCarlo(rollouts=4),
        "adaptive": Adaptive(rollouts=options.rollouts, batch=options.batch),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in searches}
    print(f"{len(trajectories)} trajectories")
    heads = ("tokens", "calls", "steps", "rows/step", "rows/token", "seconds", "model", "tokens/s", "rows/s")
    print(f"{'search':<12}" + "".join(f"{head:>11}" for head in heads), flush=True)
    for repeat in range(options.repeats):
        for name, search in searches.items():
            counting = Counting(engine.model, engine.tokenizer)
            sample = Sampler(counting, task, problems, stream=f"{name}/{repeat}", max_tokens=900)
            begin = time.process_time()
            search(trajectories, sample)
            seconds = time.process_time() - begin
            rates[name].append((sample.tokens / seconds, counting.rows / seconds))
            print(
                f"{name:<12}{sample.tokens:>11}{counting.calls:>11}{counting.steps:>11}"
                f"{counting.rows / counting.steps:>11.0f}{counting.rows / sample.tokens:>11.2f}{seconds:>11.1f}"
                f"{counting.seconds / seconds:>11.0%}{rates[name][-1][0]:>11.0f}{rates[name][-1][1]:>11.0f}",
                flush=True,
            )
    for what, column in (("tokens/s", 0), ("rows/s", 1)):
        ratios = [ours[column] / theirs[column] for ours, theirs in zip(*reversed(rates.values()), strict=True)]
        print(f"{what}, adaptive / monte_carlo: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
