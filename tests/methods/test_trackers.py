import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import ConfigError, MissingDependency
from gpo.experiment.run import Run
from gpo.methods.trackers import KNOWN, Trackers
from toy import toy_config

SCRIPT = """
import json, sys
from pathlib import Path
from gpo.methods.trackers import Trackers

path = Path(sys.argv[1])
for first in (0, 3):  # a second process would go on like this
    trackers = Trackers(sys.argv[2:])
    for step in range(first, first + 3):
        row = {"update": 0, "step": step + 1, "loss": 1 / (step + 1)}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\\n")
        trackers.log(row, path, {"arm": "gpo", "method": {"name": "dpo", "trackers": ["wandb"], "lora": None}})
    trackers.close()
"""
SETTINGS = {"arm": "gpo", "method.name": "dpo", "method.trackers": '["wandb"]', "method.lora": None}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all trackers have written of six rows, in two sessions."""
    for name in KNOWN:
        pytest.importorskip(name, reason=f"needs pip install 'gpo[{name}]'")
    folder = tmp_path_factory.mktemp("tracked")
    environment = {**os.environ, "TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", SCRIPT, str(folder / "metrics.jsonl"), *KNOWN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


LOSSES = [1 / (step + 1) for step in range(6)]


def test_tensorboard_has_every_row_at_its_line(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(6))
    assert [event.value for event in events] == pytest.approx(LOSSES)


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records of an offline file: blocks of 32 KiB of pieces with checksum (4), length (2) and kind (1)."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of it, or its end
            yield Record.FromString(whole)
            whole = b""


def test_wandb_has_every_row_in_its_offline_files(tracked: Path) -> None:
    rows = []
    for file in sorted((tracked / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(file.read_bytes()):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                rows.append((json.loads(items["_step"]), json.loads(items["loss"])))
    assert [step for step, _ in rows] == list(range(6))
    assert [loss for _, loss in rows] == pytest.approx(LOSSES)


def test_wandb_has_the_settings(tracked: Path) -> None:
    for file in (tracked / "wandb").glob("offline-run-*/*.wandb"):
        found: dict[str, Any] = {}
        for record in wandb_records(file.read_bytes()):
            updates = record.config.update if record.WhichOneof("record_type") == "config" else record.run.config.update
            found |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in updates}
        assert found.items() >= SETTINGS.items()


def test_trackio_has_the_settings(tracked: Path) -> None:
    with sqlite3.connect(tracked / "trackio" / "gpo.db") as database:
        [config] = database.execute("select config from configs").fetchall()
    assert json.loads(config[0]).items() >= SETTINGS.items()


def test_trackio_has_every_row_in_one_run(tracked: Path) -> None:
    with sqlite3.connect(tracked / "trackio" / "gpo.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert [step for _, step, _ in rows] == list(range(6))
    assert [json.loads(metrics)["loss"] for _, _, metrics in rows] == pytest.approx(LOSSES)


def test_no_tracker_is_opened_unless_asked_for(tmp_path: Path) -> None:
    Trackers(()).log({"loss": 1.0}, None)
    Trackers(()).log({"loss": 1.0}, tmp_path / "metrics.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"Unknown tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        Trackers(("tensorbord",))
    with pytest.raises(ConfigError, match="trackers need metrics_path"):
        Trackers(("tensorboard",)).log({"loss": 1.0}, None)
    found = importlib.util.find_spec
    monkeypatch.setattr("gpo.methods.trackers.find_spec", lambda name: None if name == "trackio" else found(name))
    with pytest.raises(
        MissingDependency, match=r"The tracker 'trackio' is not installed: pip install 'gpo\[trackio\]'"
    ):
        Trackers(("trackio",))


def test_a_run_says_so_before_it_samples(tmp_path: Path) -> None:
    from gpo.config.components import Spec

    method = Spec("method", "dpo", {"trackers": ("tensorbord",)})
    with pytest.raises(ConfigError, match="Unknown tracker 'tensorbord'"):
        Run(tmp_path / "run", toy_config(method=method))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:tensorboard")
def test_offline_and_online_methods_hand_over_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tiny_policy import make_model, make_pairs, make_tokenizer

    from gpo.methods.grpo import GRPO
    from gpo.methods.orpo import ORPO
    from gpo.types import Completion, Group, RoundContext, Score, Start, Trajectory

    def group() -> Group:
        start = Start("p", (1, 2))
        rows = [((3, 4), 1.0), ((5, 4), 0.0)]
        return Group(
            start,
            tuple(
                Trajectory(
                    str(ids), start, Completion(ids, "", "stop"), Score(value, "right" if value else "wrong"), (2,)
                )
                for ids, value in rows
            ),
        )

    settings: dict[str, Any] = {"trackers": ("tensorboard",)}
    offline = ORPO(make_model(), make_tokenizer(), batch_size=2, **settings)
    online = GRPO(make_model(), make_tokenizer(), **settings)
    for tokens in (100.0, 250.0):
        contexts = [
            RoundContext(sampled={"tokens_sampled": tokens}, metrics_path=tmp_path / name / "metrics.jsonl")
            for name in "ab"
        ]
        offline.update(make_pairs(4), contexts[0])
        online.update([group()], contexts[1])
    for method, name in ((offline, "a"), (online, "b")):
        method.save(tmp_path / name / "model")
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        events = EventAccumulator(str(tmp_path / name / "tensorboard")).Reload()
        for key in ("loss", "update", "grad_norm", "tokens_sampled"):
            assert [event.value for event in events.Scalars(key)] == pytest.approx([row[key] for row in rows])
        assert len(rows) == (4 if name == "a" else 2)
