"""Learning rates of the offline methods: the same pairs, the same development questions, one model for each rate.

    python benchmarks/learning_rates.py RUN OUT --methods kto,simpo --rates 3e-5,1e-4,3e-4

RUN is a run whose pairs are built (`gpo build RUN`). Every model begins with the embedded reasoner, trains on the pairs
of one arm, and answers the same generated development questions with the same seeds; test questions are not looked at.
Goes on where it was left. Prints accuracy and its paired difference to the model before training.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import gpo
from gpo.config.presets import model_path
from gpo.evaluation.evaluation import Evaluation, EvaluationConfig
from gpo.preferences.pairs import read_pairs
from gpo.storage.directory import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arm", default="gpo")
    parser.add_argument("--methods", default="dpo,kto,simpo,orpo")
    parser.add_argument("--rates", default="3e-5,1e-4,3e-4,1e-3")
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--questions", type=int, default=180)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()

    pairs = read_pairs(RunDirectory(options.run).pairs(options.arm))[: options.pairs]
    models = {"base": model_path("reasoner")}
    print(f"{len(pairs)} pairs of {len({pair.problem_id for pair in pairs})} problems")
    for name in options.methods.split(","):
        for rate in options.rates.split(","):
            path = options.out / "models" / f"{name}-{rate}"
            if not path.exists():
                shutil.rmtree(options.out / "work", ignore_errors=True)
                method = gpo.make("method", name, model="reasoner", learning_rate=float(rate))
                metrics = method.update(pairs)
                method.save(path)
                (options.out / f"{name}-{rate}.json").write_text(json.dumps(metrics))
            models[path.name] = str(path)
            config = EvaluationConfig(
                models=models,
                task="reasoner",
                split="dev",
                limit=options.questions,
                samples=options.samples,
                max_tokens=300,
            )
            board = Evaluation(options.out / "evaluation", config).all()
            score = next(score for score in board.models if score.name == path.name)
            print(path.name, score.passes[1], score.gain, flush=True)


if __name__ == "__main__":
    main()
