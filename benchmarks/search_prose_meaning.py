"""How often rollouts of the ground of prose take a step of the solution in other words, and what follows them.

    python benchmarks/search_prose_meaning.py --model qwen-coder_DIRECTORY [--rollouts 4] [--results benchmarks/results]

From each boundary but the last of the ground's solutions, the short ones first, a few rollouts are sampled as the
ground's own were. A line for each goes to search_prose_meaning.jsonl: where it began, how many of the solution's next
steps it repeats token by token and by `meaning` (of GSM8K: the last number of a step), and whether it ended right. In
bfloat16, so that another run gives other rollouts. A command that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from gpo.engines.hf import HFEngine
from gpo.preferences.credit import as_meant
from gpo.rollout.sampler import Sampler
from gpo.tasks.gsm8k import GSM8K
from gpo.types import Trajectory
from search_grounds import PROSE_TEMPERATURE, PROSE_TOKENS, load


def repeated(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """Steps with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def steps_of(trajectory: Trajectory) -> list[tuple[int, ...]]:
    return [trajectory.response_ids[begin:end] for begin, end in pairwise(trajectory.boundaries)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    ground = load(options.results / "search_prose.jsonl.gz")
    file = options.results / "search_prose_meaning.jsonl"
    known = {json.loads(line)["id"] for line in file.read_text().splitlines()} if file.exists() else set()
    engine, task = HFEngine(options.model, dtype="bfloat16"), GSM8K()
    means = as_meant(task.meaning, engine.tokenizer)
    sampler = Sampler(
        engine,
        task,
        {row.problem.id: row.problem for row in ground},
        temperature=PROSE_TEMPERATURE,
        max_tokens=PROSE_TOKENS,
        stream="meaning",
    )
    for row in sorted(ground, key=lambda row: len(row.trajectory.response_ids)):
        trajectory = row.trajectory
        if trajectory.id in known:
            continue
        ours = steps_of(trajectory)
        lines = []
        groups = sampler([trajectory.prefix(k) for k in range(len(ours))], options.rollouts)
        for k, group in enumerate(groups):
            for rollout in group.trajectories:
                theirs = steps_of(rollout)
                line = {
                    "id": trajectory.id,
                    "boundary": k,
                    "tokens": repeated(ours[k:], theirs[k:]),
                    "meaning": repeated([means(s) for s in ours[k:]], [means(s) for s in theirs[k:]]),
                    "right": rollout.score.right,
                }
                lines.append(json.dumps(line) + "\n")
        with file.open("a", encoding="utf-8") as out:
            out.writelines(lines)
        print(trajectory.id, sampler.tokens, flush=True)


if __name__ == "__main__":
    main()
