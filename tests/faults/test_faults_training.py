"""Training with torch that is killed, or whose machine loses its power, ends as training that was not disturbed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk import Recorder, recorded, restore, watched
from programs import differing

from gpo.methods.dpo import DPO
from gpo.methods.grpo import GRPO
from gpo.methods.ppo import PPO
from gpo.methods.update_checkpoint import last_checkpoint
from gpo.types import RoundContext

sys.path.append(str(Path(__file__).parents[1] / "methods"))  # whose tiny model serves here too
from test_online import mixed_groups
from tiny_policy import make_model, make_pairs, make_tokenizer

Some = Callable[..., list[Any]]
Survived = Callable[[str, int], None]

# A forked process has none of the OpenMP threads that its parent has begun, and would wait for them.
pytestmark = pytest.mark.usefixtures("one_thread")
OFFLINE: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "epochs": 2, "save_steps": 2, "warmup": 0.5}
ONLINE: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 2, "minibatches": 2, "save_steps": 2}
METHODS: dict[str, Callable[[], Any]] = {
    "offline, DPO": lambda: DPO(make_model(), make_tokenizer(), **OFFLINE),
    "online, GRPO": lambda: GRPO(make_model(), make_tokenizer(), **ONLINE),
    "online, PPO": lambda: PPO(make_model(), make_tokenizer(), **ONLINE),
}


def train(directory: Path, name: str) -> None:
    """A round's training as a run does it: nothing is left to do once the model is there."""
    if (directory / "model").exists():
        return
    method = METHODS[name]()
    data: Any = make_pairs(8) if name.startswith("offline") else mixed_groups()
    method.update(data, RoundContext(work_dir=directory / "work", metrics_path=directory / "metrics.jsonl"))
    method.save(directory / "model")


def trained(directory: Path) -> dict[str, bytes]:
    files = (path for path in (directory / "metrics.jsonl", *(directory / "model").rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture(scope="module", params=METHODS)
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Recorder, Any]:
    root = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _: None)
        with recorded(root) as recorder:
            train(root / "run", request.param)
    return request.param, recorder, trained(root / "run")


@pytest.mark.parametrize("fault", ["kill", "strict", "renamed", "zeros"])
def test_training_that_breaks_off_at_any_call_ends_with_the_same_weights(
    fault: str, history: tuple[str, Recorder, Any], tmp_path: Path, some: Some, survived: Survived
) -> None:
    name, recorder, expected = history
    assert any(path.endswith(".safetensors") for path in expected)
    states = some(recorder.killed if fault == "kill" else recorder.powerless[fault], 2, 60)
    for state in states:
        restore(state.tree, tmp_path)
        train(tmp_path / "run", name)
        assert not differing(trained(tmp_path / "run"), expected), state
    what = "kill before a call, or half way through a write" if fault == "kill" else f"power, file system {fault!r}"
    survived(f"{what} ({name})", len(states))


@pytest.mark.parametrize("fault", ["strict", "renamed", "zeros"])
def test_a_loss_of_power_loses_no_checkpoint_that_stood_for_an_earlier_one(
    fault: str, history: tuple[str, Recorder, Any], tmp_path: Path, survived: Survived
) -> None:
    name, recorder, _ = history
    if not name.startswith("offline"):
        pytest.skip("an online update has one file, which is replaced as a whole")
    known, states = 0, recorder.powerless[fault]
    for state in states:
        if "run/model/config.json" in state.tree:
            break  # what remains is cleared
        marked = [path.split("/")[2] for path in state.tree if path.endswith("/whole")]
        newest = max((int(checkpoint.partition("-")[2]) for checkpoint in marked), default=0)
        assert newest >= known, state
        if newest:
            weights = state.tree[f"run/work/checkpoint-{newest}/model.safetensors"]
            assert weights is not None
            assert weights.strip(b"\0")
        known = newest
    assert known == 4
    survived("power while a checkpoint takes the place of another", len(states))


def test_a_checkpoint_that_was_not_whole_is_not_taken(tmp_path: Path) -> None:
    for number, whole in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
        if whole:
            (tmp_path / f"checkpoint-{number}" / "whole").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def train_and_die(directory: Path, name: str, at: int) -> None:
    calls = 0

    def die(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(directory, die):
        train(directory, name)


def test_training_that_is_killed_for_real_ends_with_the_same_weights(
    history: tuple[str, Recorder, Any], tmp_path: Path, some: Some, survived: Survived
) -> None:
    name, recorder, expected = history
    calls = some(list(range(2, recorder.calls - 8)), 2, 20)
    for at in calls:
        directory = tmp_path / str(at)
        directory.mkdir()
        process = multiprocessing.get_context("fork").Process(target=train_and_die, args=(directory, name, at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        train(directory, name)
        assert not differing(trained(directory), expected), at
    survived(f"SIGKILL ({name})", len(calls))
