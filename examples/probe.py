"""Fit a linear probe of the success probability to a model's hidden states, and say how good it is on unseen questions.

    python examples/probe.py [DIRECTORY [PROBLEMS]]

`gpo states RUN` has written the states; nothing here knows GPO from then on. Ridge regression on every boundary,
cross-validated so that no question is in both parts.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import gpo
from gpo.report.states import write_states

FOLDS = 5
PENALTIES = (100.0, 1000.0, 10_000.0)


def ridge(inputs: np.ndarray, values: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """Coefficients of standardised inputs with a 1 behind them."""
    scaled = inputs * weights[:, None]
    size = inputs.shape[1]
    return np.linalg.solve(scaled.T @ inputs + penalty * np.diag([1.0] * (size - 1) + [0.0]), scaled.T @ values)


def predicted(
    states: np.ndarray, values: np.ndarray, counts: np.ndarray, questions: np.ndarray, penalty: float
) -> np.ndarray:
    """The probe's value of each boundary, by a fit without its question."""
    fold = np.unique(questions, return_inverse=True)[1] % FOLDS
    found = np.zeros(len(values))
    for each in range(FOLDS):
        learn, test = fold != each, fold == each
        centre, scale = states[learn].mean(0), states[learn].std(0) + 1e-6
        inputs = np.column_stack([(states - centre) / scale, np.ones(len(states))])
        found[test] = inputs[test] @ ridge(inputs[learn], values[learn], counts[learn], penalty)
    return found


def auc(score: np.ndarray, right: np.ndarray) -> float:
    """How often a boundary that is likely to end right has the higher score than one that is not."""
    high, low = score[right], score[~right]
    return float((high[:, None] > low).mean() + (high[:, None] == low).mean() / 2)


if __name__ == "__main__":
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/probe")
    problems = int(sys.argv[2]) if len(sys.argv) > 2 else 90
    search = gpo.Spec("estimator", "monte_carlo", {"rollouts": 8, "share_path": True})
    config = gpo.RunConfig(
        problems=problems, rollouts=2, test_problems=1, budget=12, locate_share=0.4, arms={"gpo": search}
    )
    run = gpo.Run(directory, config)
    run.locate("gpo")
    path, boundaries = write_states(directory, every=True)

    tensors = load_file(path)
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    # What is known of a boundary: the rollouts behind its value, or else the one reward of its response, which all of
    # its boundaries share. Behind the last step the value is the reward, and nothing is left to tell.
    steps = Counter(row["trajectory_id"] for row in rows)
    open_ = np.array([row["boundary"] < steps[row["trajectory_id"]] - 1 for row in rows])
    searched = tensors["counts"] > 0
    targets = np.where(searched, tensors["values"], tensors["rewards"]).astype(float)
    weights = np.where(searched, tensors["counts"], [1 / steps[row["trajectory_id"]] for row in rows])
    states, questions = tensors["states"][:, 0].astype(float), np.array([row["problem_id"] for row in rows])
    judged = (searched & open_)[open_]
    states, targets, weights, questions = (each[open_] for each in (states, targets, weights, questions))
    print(
        f"{open_.sum()} boundaries, {judged.sum()} with a value by rollouts, of {len(set(questions[judged]))} questions"
    )
    values, counts = targets[judged], weights[judged]
    spread = np.average((values - np.average(values, weights=counts)) ** 2, weights=counts)
    for penalty in PENALTIES:
        guess = predicted(states, targets, weights, questions, penalty)[judged]
        r2 = 1 - np.average((values - guess) ** 2, weights=counts) / spread
        print(
            f"penalty {penalty:g}: cross-validated R2 {r2:+.2f}, AUC of values above 0.5 {auc(guess, values > 0.5):.2f}"
        )
