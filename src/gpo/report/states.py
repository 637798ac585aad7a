"""`gpo states RUN`: the hidden states of the policy at every boundary, for probes and steering vectors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpo.config.models import resolve_model
from gpo.config.options import resolve
from gpo.config.trust import refuse_strangers
from gpo.errors import ConfigError, DataError
from gpo.report.reading import Reading, Searched, Texts, read_run
from gpo.storage.directory import RunDirectory
from gpo.storage.files import refuse_link, replacing, write_rows
from gpo.storage.rounds import RoundState
from gpo.types import DEFAULT_RUN

TOGETHER = 64  # trajectories whose states are held in float32 at a time


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Raises:
        ConfigError: this is no run directory, it has no such arm or round, or its model no such layer.
        DataError: nothing was sampled yet.
    """
    parser = argparse.ArgumentParser(
        prog="gpo states",
        description="Write the hidden states of the policy at every step boundary, with texts, values and counts.",
    )
    parser.add_argument("run", type=Path, nargs="?", default=DEFAULT_RUN, help=f"a run directory ({DEFAULT_RUN})")
    parser.add_argument("--out", type=Path, help="folder for states.safetensors and states.jsonl (default: RUN/states)")
    parser.add_argument("--arm", help="whose search tells the values (default: the first arm that searched)")
    parser.add_argument("--round", type=int, help="the round (default: the last one that was searched)")
    parser.add_argument("--layers", default="-1", help="such as 8,16,-1; 0 is the embedding, -1 (default) the last")
    parser.add_argument("--mean", action="store_true", help="over the tokens of a step, in place of its last token")
    parser.add_argument("--all", action="store_true", help="also rollouts from the questions that were not searched")
    options = parser.parse_args(arguments)
    try:
        layers = [int(layer) for layer in options.layers.split(",")]
    except ValueError:
        raise ConfigError(f"--layers is {options.layers!r}; expected numbers such as 8,16,-1.") from None
    path, boundaries = write_states(
        options.run, options.out, options.arm, options.round, layers=layers, mean=options.mean, every=options.all
    )
    size = path.stat().st_size / 1e6
    print(f"{path} ({size:.1f} MB): {boundaries} boundaries; texts and values are in {path.with_suffix('.jsonl')}")
    return 0


def write_states(
    run: Path,
    out: Path | None = None,
    arm: str | None = None,
    number: int | None = None,
    *,
    layers: Sequence[int] = (-1,),
    mean: bool = False,
    every: bool = False,
) -> tuple[Path, int]:
    """Write states, and a row for each; the path of the first file and how many there are.

    Args:
        out: the folder; None is RUN/states.
        arm, number: whose search tells the values, in which round; the model is the one that sampled in it.
        layers, mean: as `gpo.estimators.states.at_boundaries`.
        every: also the rollouts from the questions that were not searched, whose values are not known.
    """
    from gpo.estimators.gradient import loaded
    from gpo.estimators.states import at_boundaries

    files = RunDirectory(run)
    refuse_strangers(run, files.config_or_none())
    reading = read_run(files, arm, number)
    items = [*reading.searched, *(unsearched(reading) if every else [])]
    model = loaded(model_of(reading))
    parts, rows = [], []
    for begin in range(0, len(items), TOGETHER):
        some = items[begin : begin + TOGETHER]
        found = at_boundaries(model, [item.trajectory for item in some], layers, mean=mean)
        parts += [states.astype(np.float16) for states in found]
        rows += [row for item in some for row in rows_of(item)]
    if not all(np.isfinite(part).all() for part in parts):
        raise DataError("Some hidden states do not fit into float16. Choose other --layers.")
    folder = out or run / "states"
    refuse_link(folder)
    write_rows(folder / "states.jsonl", rows)
    save(folder / "states.safetensors", np.concatenate(parts), rows, {"layers": list(layers), "mean": mean})
    return folder / "states.safetensors", len(rows)


def unsearched(reading: Reading) -> list[Searched]:
    """The other rollouts from the questions of the round."""
    known = {item.trajectory.id for item in reading.searched}
    cut = Texts(reading.files)
    rest = [t for group in reading.first for t in group.trajectories if t.id not in known]
    return [Searched(reading.problems[t.start.problem_id], t, cut(t), None) for t in rest]


def model_of(reading: Reading) -> Any:
    """The source of the model that sampled in the round."""
    arm = reading.arm or next(iter(reading.config["arms"]))
    checkpoint = RoundState.of(reading.files, arm, reading.number).checkpoint
    return str(checkpoint) if checkpoint is not None else resolve_model(resolve({}, reading.config)).source


def rows_of(item: Searched) -> list[dict[str, Any]]:
    """A row for each boundary (K + 1)."""
    scores, trajectory = item.scores, item.trajectory
    return [
        {
            "problem_id": item.problem.id,
            "trajectory_id": trajectory.id,
            "boundary": k,
            "tokens": trajectory.boundaries[k],  # of the response, before the boundary
            "step": "" if k == 0 else item.steps[k - 1],  # before the boundary
            "value": None if scores is None or scores.values[k] != scores.values[k] else scores.values[k],
            "count": 0 if scores is None else scores.counts[k],
            "reward": trajectory.score.value,
            "critical": item.critical is not None and k - 1 == item.critical,
        }
        for k in range(len(trajectory.boundaries))
    ]


def save(path: Path, states: Any, rows: Sequence[dict[str, Any]], metadata: dict[str, Any]) -> None:
    """Tensors `states` (B, L, H), `values` (B,), `counts` (B,), `rewards` (B,), NaN where nothing is known."""
    from safetensors.numpy import save_file

    numbers = {
        name: np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=np.float32)
        for name, key in (("values", "value"), ("counts", "count"), ("rewards", "reward"))
    }
    with replacing(path) as place:
        save_file({"states": states, **numbers}, place, {key: str(value) for key, value in metadata.items()})
