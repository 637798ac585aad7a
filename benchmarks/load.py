"""What many trajectories take: memory and time of store, search bookkeeping, pairs, data set and report.

    python benchmarks/load.py [--trajectories 100000] [--tokens 100] [--group 50] [--out FILE]

Made trajectories with log-probabilities go through what a run does with them, each stage in a process of its own. Shown
are seconds of the processor and megabytes beyond an interpreter that has imported the same, for a quarter of them and
for all: what is linear takes four times as much. `--out` adds them to a file of JSON lines, of which
`benchmarks/reliability.py` makes a page.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from gpo.experiment.budget import next_chunk, reset_starts, round_robin, to_search
from gpo.experiment.starts import Starts
from gpo.preferences.dataset import write_dataset
from gpo.preferences.pairs import build_pairs, read_pairs, write_pairs
from gpo.storage.directory import RunDirectory
from gpo.storage.files import write_json
from gpo.toy import ChainTokenizer
from gpo.types import Completion, Group, PairSettings, Problem, Score, Start, StepScores, Trajectory

STEPS = 10
CHUNK = 512  # trajectories


def groups(count: int, tokens: int, size: int, chunk: int) -> Iterator[list[Group]]:
    """Chunks of groups of rollouts from questions, half of them right."""
    random = Random(0)
    made: list[Group] = []
    for number in range(count // size):
        start = Start(f"p{number}", (7, 1))
        ends = tuple(tokens * (k + 1) // STEPS for k in range(STEPS))
        trajectories = tuple(
            Trajectory(
                f"rollout:p{number}:{n}",
                start,
                Completion(
                    tuple(random.choices(range(5, 40), k=tokens)),
                    "x" * tokens,
                    "stop",
                    tuple(-random.random() for _ in range(tokens)),
                ),
                Score(float(n % 2), "right" if n % 2 else "wrong", "7"),
                ends,
            )
            for n in range(size)
        )
        made.append(Group(start, trajectories))
        if len(made) * size >= chunk:
            yield made
            made = []
    if made:
        yield made


def store(run: Path, count: int, tokens: int, size: int) -> None:
    """Append chunk by chunk, as sampling does."""
    files = RunDirectory(run)
    files.write_problems({"train": [Problem(f"p{n}", f"question {n}", "7") for n in range(count // size)], "test": []})
    write_json(run / "config.json", {"gpo": "0", **CONFIG})
    for chunk in groups(count, tokens, size, CHUNK):
        files.rollouts.append(chunk)


CONFIG = {
    "task": {"name": "chain"},
    "model": "m",
    "engine": {"name": "chain"},
    "arms": {"gpo": {"name": "monte_carlo"}},
    "budget": 2.0,
    "test_samples": 1,
    "segmenter": {"name": "newline"},
}


def search(run: Path, count: int, tokens: int, size: int) -> None:
    """Bookkeeping of a search of a quarter of the trajectories, and of the resets behind it."""
    files = RunDirectory(run)
    first = files.rollouts.read()
    chosen = to_search(first, max(1, size // 4))
    scores = files.scores("gpo")
    for begin in range(0, len(chosen), 32):
        scores.append([_score(trajectory) for trajectory in chosen[begin : begin + 32]])
        sum(score.tokens for score in scores.read())
    starts = reset_starts(scores.read(), chosen)
    seen = Starts(starts)
    for group in first:
        seen.add(group)
    numbers = [seen.number(start) for start in starts]
    due = round_robin(numbers, 8, had={number: seen.known(number).graded for number in numbers})
    for done in range(0, len(starts), 64):
        next_chunk(due(done), seen.length, left=10**9, most=64)


def _score(trajectory: Trajectory) -> StepScores:
    values = tuple(k / STEPS for k in range(STEPS + 1))
    return StepScores(trajectory.id, values, (4,) * (STEPS + 1), values, values, (1 / STEPS,) * STEPS, 3, 3, 40)


def pairs(run: Path, count: int, tokens: int, size: int) -> None:
    """Preference pairs of everything, as JSON lines."""
    built = build_pairs(
        RunDirectory(run).rollouts.read(),
        ChainTokenizer(),
        settings=PairSettings(per_start=size // 2, per_problem=size // 2),
        stop_ids=frozenset([0]),
    )
    write_pairs(built, run / "pairs.jsonl", "prompt")


def dataset(run: Path, count: int, tokens: int, size: int) -> None:
    """The same pairs as Parquet, paired and unpaired."""
    write_dataset(read_pairs(run / "pairs.jsonl"), run / "dataset")


def report(run: Path, count: int, tokens: int, size: int) -> None:
    """The page of a run, with 2,000 trajectories on it."""
    from gpo.report.command import write_report

    path = write_report(run, most=2000)
    print(f"  page of {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


STAGES = {each.__name__: each for each in (store, search, pairs, dataset, report)}


def measure(stage: str, run: Path, count: int, tokens: int, size: int) -> tuple[float, float]:
    """Seconds of the processor and megabytes at most, of a process of its own."""
    words = [sys.executable, __file__, "--stage", stage, "--run", str(run)]
    words += ["--trajectories", str(count), "--tokens", str(tokens), "--group", str(size)]
    seconds, megabytes = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-2:]
    return float(seconds), float(megabytes)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--group", type=int, default=50, help="trajectories of a question")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, help="JSON lines to add the numbers to")
    options = parser.parse_args()
    if options.stage is not None:
        before, began = peak(), time.process_time()
        STAGES[options.stage](options.run, options.trajectories, options.tokens, options.group)
        print(f"{time.process_time() - began:.2f} {peak() - before:.0f}")
        return
    counts: Sequence[int] = (options.trajectories // 4, options.trajectories)
    print(f"{'stage':<10}" + "".join(f"{count:>12,} s{'MB':>8}" for count in counts))
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            cells = []
            for count in counts:
                seconds, megabytes = measure(stage, Path(folder) / str(count), count, options.tokens, options.group)
                row = {"load": stage, "trajectories": count, "seconds": seconds, "megabytes": megabytes}
                if options.out is not None:
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                cells.append(f"{seconds:>14.1f}{megabytes:>8.0f}")
            print(f"{stage:<10}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
