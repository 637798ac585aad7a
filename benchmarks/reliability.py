"""The page of faults: what was injected, what survived, and what many trajectories take.

    python benchmarks/reliability.py [--faults FILE] [--load FILE] [--out docs/reliability.md]

Reads two files of JSON lines: that of the suite of faults (`make faults` writes it, GPO_FAULTS_LOG names it), and that
to which `benchmarks/load.py` and others add their numbers with `--out`. The words are in `reliability.md.jinja`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
SECTIONS = ("crash", "kills", "training", "disk", "components", "strangers", "pages")  # test_faults_*.py
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def page(faults: Sequence[Row], load: Sequence[Row]) -> str:
    """The Markdown of the page."""
    runs, counted = [row for row in faults if "asked" in row], [row for row in faults if "kind" in row]
    files = tuple(f"test_faults_{name}.py::" for name in SECTIONS)
    if strange := [row["test"] for row in counted if not row["test"].startswith(files)]:
        raise SystemExit(f"No section for {strange[0]}: add it to SECTIONS and to reliability.md.jinja.")
    environment = Environment(  # no page of the web: nothing is escaped
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.get_template("reliability.md.jinja").render(
        **_sums(counted),
        asked=_all(str(row["asked"]) for row in runs),
        machine=_all(f"{row['cores']} CPU cores, Python {row['python']}" for row in runs),
        sections={name: _section(name, counted) for name in SECTIONS},
        stages=[row for row in load if "load" in row],
        others=[row for row in load if "what" in row],
    )


def _section(name: str, rows: Sequence[Row]) -> list[Row]:
    """The faults of a test file by kind."""
    own = [row for row in rows if row["test"].startswith(f"test_faults_{name}.py")]
    kinds = sorted({row["kind"] for row in own})
    return [{"kind": kind, **_sums([row for row in own if row["kind"] == kind])} for kind in kinds]


def _sums(rows: Sequence[Row]) -> Row:
    return {name: sum(row[name] for row in rows) for name in ("injected", "survived", "seconds")}


def _all(texts: Any) -> str:
    return " and ".join(sorted(set(texts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=Path, default=HERE / "results/faults.jsonl")
    parser.add_argument("--load", type=Path, default=HERE / "results/load.jsonl")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/reliability.md")
    options = parser.parse_args()
    options.out.write_text(page(read(options.faults), read(options.load)), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
