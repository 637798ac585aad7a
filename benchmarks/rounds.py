"""What many rounds take: time, memory and files of a toy run, as it goes on.

    python benchmarks/rounds.py [--rounds 1440] [--out FILE]

1,440 rounds are one a minute of a day. Shown are seconds of the processor for each round, memory of the process, files
and bytes of the run directory, after an eighth, a quarter, a half and all of the rounds. `--out` adds a line to a file,
of which `benchmarks/reliability.py` makes a page.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from gpo.experiment.run import Run
from gpo.storage.events import Progress
from gpo.types import Stage
from toy import toy_config

MEGABYTE = 1e6


def resident() -> float:
    """Megabytes of memory that the process has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / MEGABYTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1440)
    parser.add_argument("--out", type=Path, help="JSON lines to add the numbers to")
    options = parser.parse_args()
    marks = [options.rounds // share for share in (8, 4, 2, 1)]
    found: list[tuple[int, float, float, int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        began, trained = time.process_time(), 0

        def note(progress: Progress) -> None:
            nonlocal trained
            if progress.stage == Stage.TRAIN and progress.done == progress.total and progress.seconds:
                trained += 1
                if trained in marks and trained not in [row[0] for row in found]:
                    files = [path for path in directory.rglob("*") if path.is_file()]
                    size = sum(path.stat().st_size for path in files) / MEGABYTE
                    found.append((trained, time.process_time() - began, resident(), len(files), size))
                    print("{:5d} rounds {:8.1f} s {:6.0f} MB of memory {:6d} files {:8.1f} MB".format(*found[-1]))

        config = toy_config(
            rounds=options.rounds, arms={"gpo": "monte_carlo"}, problems=2, rollouts=3, reset_rollouts=2, budget=4.0
        )
        Run(directory, config, on_progress=note).train("gpo")
    if options.out is not None and len(found) == len(marks):
        (r0, s0, m0, f0, d0), (r1, s1, m1, f1, d1) = found[-2:]
        each = r1 - r0
        row = {
            "what": f"{options.rounds:,} rounds of a toy run in one process: of each of the last {each:,}",
            "measured": f"{1000 * (s1 - s0) / each:.0f} ms of the processor (first {marks[0]:,}: "
            f"{1000 * found[0][1] / marks[0]:.0f}), {1000 * (m1 - m0) / each:.0f} kB of memory, {(f1 - f0) / each:.1f} "
            f"files, {1000 * (d1 - d0) / each:.0f} kB of disk; {m1:.0f} MB of memory in the end",
        }
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
