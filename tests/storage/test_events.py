"""What the log of a run tells, and what it passes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpo.storage.events import Events, Progress


@pytest.mark.parametrize(
    "line",
    [
        *(b"\xff\xfe", b"[1]", b"3", b"{}", b'{"stage": "rollout"}', b'{"stage": 1, "seconds": 1, "tokens": 1}'),
        b'{"stage": "\\u001b]0;owned", "arm": null, "seconds": 1, "tokens": 1}',
        b'{"stage": "rollout", "arm": 3, "seconds": 1, "tokens": 1}',
        b'{"stage": "rollout", "arm": null, "seconds": "x", "tokens": 1}',
        b'{"stage": "rollout", "arm": null, "seconds": NaN, "tokens": 1}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_event_is_passed_over(tmp_path: Path, line: bytes) -> None:
    events = Events(tmp_path / "events.jsonl")
    events.log(Progress("rollout", None, 1, 2, "problems", 30, 1.5))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(line)
    events.log(Progress("reset", "gpo 2", 2, 2, "problems", 30, 1.5))
    assert events.seconds() == {"rollout": 1.5, "reset": 1.5}
    assert events.tokens_per_second("gpo") == 20


def test_stages_that_ran_side_by_side_share_the_seconds_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events(tmp_path / "events.jsonl")
    for now, stage, arm, seconds, worker in (
        (110.0, "rollout", None, 10.0, 0),
        (116.0, "train", "plain", 6.0, 1),  # alone for 2 of its 6 s, and with the next one for 4
        (118.0, "evaluate", "base", 6.0, 0),
        (130.0, "report", None, 2.0, 0),
    ):
        monkeypatch.setattr("time.time", lambda now=now: now)
        events.log(Progress(stage, arm, 1, 1, "pieces", 0, seconds), worker=worker)
    assert events.seconds() == {"rollout": 10, "train": 4, "evaluate": 4, "report": 2}
    assert events.seconds_of("plain") == {"rollout": 10, "train": 6, "report": 2}
