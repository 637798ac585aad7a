"""What a round of samples says of the gradient that is wanted: questions, resets to random, found and uncertain steps.

    python benchmarks/gradients.py DIRECTORY [--model reasoner] [--rounds 24] [--results FILE] [--OPTION VALUE]...

The first round of GRPO as the suites have it (24 questions, 8 first rollouts of each and as many tokens again, spent
by each arm in its way) is sampled again and again, each time on other questions, and nothing is trained. Of each arm's
groups the gradient of the loss is taken at the same weights, and held against the gradient of success itself: that of
16 rollouts of each of 900 development questions, nearly all of which no arm has seen. A step along a gradient g of a
given length gains in proportion to cos(g, wanted), to first order. So the arms are compared before any optimizer has
its say, but also with each parameter divided by the root of the root mean square of its gradient over the plain arm's
rounds, which makes the product that of Adam's step with the wanted gradient.

Other options are those of `gpo run`, such as `--problems 48 --rollouts 4`.

A line of JSON for each round and arm; what is there is not sampled again. About 40 s a round on one core, and eight
minutes before the first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy import stats

from gpo.config.components import make
from gpo.config.options import resolve, split
from gpo.config.presets import model_path
from gpo.engines.allocation import keep_freed_memory
from gpo.experiment.run import Run
from gpo.experiment.training import training_groups
from gpo.methods.grpo import GRPO
from gpo.methods.rows import TrainingRow
from gpo.methods.scoring import scoring
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.storage.rounds import RoundState
from gpo.types import Group, ModelRef, RoundContext, tokens_of

Array = np.ndarray[Any, np.dtype[np.float32]]
ARMS = {
    "arms": "plain,random,gpo,unsearched,entropy",
    "arms.unsearched": "random_unsearched",
    "arms.entropy": "entropy",
}
AS_IT_WAS = {"locate_share": "0.4", "reset_turns": "0"}  # the default when the stored results were made
RUN = {**AS_IT_WAS, "method": "grpo", "problems": "24", "budget": "2", "test_problems": "0", "workers": "1", **ARMS}
FIRST = "first"  # the first rollouts alone
SAMPLES, QUESTIONS = 16, 900  # of the gradient that is wanted
HALVES = 2  # of it: their product is its square without noise


class Gradient(GRPO):
    """GRPO that keeps the gradient of an update and takes no step."""

    found: Array

    def _step(self, optimizer: torch.optim.Optimizer, rows: Sequence[TrainingRow]) -> dict[str, float]:
        optimizer.zero_grad()
        with scoring(self.policy.model) as scorer:
            for members, _, out in self._batches(scorer, rows):
                loss, metrics = self._loss(members, out, sum(len(row.tokens) for row in rows))
                loss.backward()
        parts = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in self._parameters()]
        self.found = -torch.cat(parts).numpy()  # uphill
        return {**metrics, "grad_norm": float(np.linalg.norm(self.found))}


def gradient(model: ModelRef, groups: Sequence[Group], scale: bool) -> tuple[Array, dict[str, float]]:
    method = Gradient(learning_rate=1e-4, scale=scale, max_tokens=16384)
    metrics = method.update(groups, RoundContext(model=model))
    if metrics["steps"] == 0:
        raise SystemExit("A round has no group with both outcomes.")
    return method.found, metrics


def wanted(directory: Path, model: ModelRef, name: str) -> list[Array]:
    """The gradient of success on development questions, of each half of them."""
    path = directory / "wanted.npy"
    if not path.exists():
        task, engine = make("task", "reasoner"), make("engine", "hf", model=name)
        problems = task.problems("dev")[:QUESTIONS]
        sampler = Sampler(engine, task, {problem.id: problem for problem in problems}, seed=0, stream="wanted")
        groups: list[Group] = []
        for first in range(0, len(problems), 32):
            starts = [question_start(problem, task, engine.tokenizer) for problem in problems[first : first + 32]]
            groups += sampler(starts, SAMPLES)
        # Each trajectory counts alike: the sum over its tokens, less the mean of its question.
        halves = [gradient(model, groups[half::HALVES], scale=False)[0] for half in range(HALVES)]
        np.save(path, np.stack(halves))
    return list(np.load(path))


def sample(
    directory: Path, number: int, name: str, model: ModelRef, options: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A round: each arm's samples, its gradient into a file, and what it took. Of the first rollouts alone, too."""
    own = {"model": name, "seed": str(number), "task.seed": str(1000 + number)}
    run = Run(directory / str(number), resolve({**RUN, **options, **own}))
    rows = []
    for arm in (FIRST, *run.config.arms):
        groups, tokens = run.rollout(), {}
        if arm != FIRST:
            run.reset(arm)
            state = RoundState.of(run.files, arm)
            groups, tokens = training_groups(run, state), state.tokens()
        found, metrics = gradient(model, groups, scale=True)
        np.save(directory / f"{number}.{arm}.npy", found)
        rows.append(
            {
                "round": number,
                "arm": arm,
                "sampled": sum(tokens.values()) or tokens_of(groups),
                "searched": tokens.get("locate", 0),
                "starts": len({group.start.key for group in groups}),
                "trained": metrics["trained_tokens"],
                "loss_tokens": metrics["loss_tokens"],
                "reset_share": metrics["reset_share"],
                "reward": metrics["reward"],
            }
        )
    run.engine.release()
    return rows


def cosines(gradients: Sequence[Array], halves: Sequence[Array]) -> dict[str, Any]:
    """Of each round's gradient with the wanted one, and of what all rounds share.

    `limit` is the cosine that endless rounds would have, noise left out by products of different rounds; `noise` the
    square of a round's noise in squares of its signal.
    """
    g, w = np.stack(gradients).astype(np.float64), np.stack(halves).astype(np.float64)
    mean = w.mean(axis=0)
    length = sqrt(w[0] @ w[1])
    along = g @ mean / length
    squares = (g * g).sum(axis=1)
    products = g @ g.T
    n = len(g)
    signal = (products.sum() - products.trace()) / (n * (n - 1))
    return {
        "each": [float(x) for x in along / np.sqrt(squares)],
        "limit": float(fmean(along) / sqrt(signal)),
        "noise": float(fmean(squares) / signal - 1),
    }


def interval(values: Sequence[float]) -> str:
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / sqrt(len(values))
    return f"{fmean(values):+.4f} [{fmean(values) - half:+.4f}, {fmean(values) + half:+.4f}]"


def told(directory: Path, rows: Sequence[dict[str, Any]], halves: Sequence[Array]) -> list[dict[str, Any]]:
    """The rows with their cosines, and what is said of them printed."""
    numbers = sorted({row["round"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    found = {arm: [np.load(directory / f"{number}.{arm}.npy") for number in numbers] for arm in arms}
    deviation = np.sqrt(np.mean([g.astype(np.float64) ** 2 for g in found["plain"]], axis=0)) + 1e-12
    for title, divided in (("cosine", np.ones_like(deviation)), ("cosine_adam", np.sqrt(deviation))):
        # g / deviation against the wanted gradient itself is the product of both over the root of it.
        of = {arm: cosines([g / divided for g in found[arm]], [h / divided for h in halves]) for arm in arms}
        print(f"\n{title} with the gradient of success, {len(numbers)} rounds")
        for arm in arms:
            ours = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["round"])
            for row, each in zip(ours, of[arm]["each"], strict=True):
                row[title] = round(each, 5)
            behind = [a - b for a, b in zip(of[arm]["each"], of["plain"]["each"], strict=True)]
            means = {key: fmean(row[key] for row in ours) for key in ("sampled", "trained", "reset_share", "starts")}
            print(
                f"  {arm:<11}{interval(of[arm]['each'])}  minus plain {interval(behind) if arm != 'plain' else '-':<28}"
                f"  limit {of[arm]['limit']:.3f}  noise {of[arm]['noise']:6.1f}"
                f"  sampled {means['sampled']:,.0f}  trained {means['trained']:,.0f}"
                f"  at resets {means['reset_share']:.2f}  starts {means['starts']:.0f}"
            )
    return list(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default="reasoner")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--results", type=Path)
    chosen, more = parser.parse_known_args()
    _, options = split(more)
    keep_freed_memory()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    model = ModelRef(model_path(chosen.model), chosen.model)
    halves = wanted(chosen.directory, model, chosen.model)
    results = chosen.directory / "rounds.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    rows = [json.loads(line) for line in lines]
    for number in range(chosen.rounds):
        if number in {row["round"] for row in rows}:
            continue
        new = sample(chosen.directory, number, chosen.model, model, options)
        with results.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        rows += new
        print(f"round {number} of {chosen.rounds}", flush=True)
    found = told(chosen.directory, rows, halves)
    if chosen.results is not None:
        chosen.results.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


if __name__ == "__main__":
    main()
