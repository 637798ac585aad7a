"""Several processes, with the whole model each or with shards of it, train the weights of one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from tiny_policy import make_model
from train_together import CASES, start_model, train

from gpo.errors import ConfigError
from gpo.methods.division import Batches
from gpo.methods.dpo import DPO
from gpo.methods.kto import KTO
from gpo.methods.processes import join
from gpo.methods.rows import TrainingRow, part
from gpo.types import Start

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
WHOLE = os.environ.get("GPO_PROCESSES") == "whole"
IN_ALL_TESTS = ("dpo", "kto", "grpo", "ppo")
LAUNCHES = {
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m"],
    "three": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "3", "-m"],
    "fsdp2": [
        *(str(BIN / "accelerate"), "launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--use_fsdp", "--fsdp_version", "2", "-m"),
    ],
}


def train_together(launch: str, folder: Path, cases: Sequence[str]) -> None:
    start_model(folder / "start")
    path = ":".join([str(HERE), *filter(None, sys.path)])
    on_cpus = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    words = [*LAUNCHES[launch], "train_together", str(folder), *cases]
    done = subprocess.run(words, env=os.environ | on_cpus, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def check(folder: Path, alone: Path, cases: Sequence[str], processes: int = 2, *, sharded: bool = False) -> None:
    """Files, metrics and weights of each case are those of one process."""
    for name in cases:
        shutil.rmtree(alone / name, ignore_errors=True)
        _, expected = train(name, folder / "start", alone / name)
        for process in range(processes):
            told: dict[str, Any] = torch.load(folder / f"{name}-{process}.pt")
            assert (told["processes"], told["sharded"]) == (processes, sharded)
            # Means over the batches of a step, which are put together.
            apart = {"entropy", "kl"} if name == "dpo-accumulated" else set()
            for found, wanted in zip(told["metrics"], expected, strict=True):
                assert found.keys() == wanted.keys()
                kept = {key: value for key, value in found.items() if key not in apart}
                assert kept == pytest.approx({key: wanted[key] for key in kept}, abs=1e-5, rel=1e-5), name
        files = [sorted(str(p.relative_to(root)) for p in (root / name).rglob("*")) for root in (folder, alone)]
        assert files[0] == files[1]
        rows = [(root / name / "metrics.jsonl").read_text().count("\n") for root in (folder, alone)]
        assert rows[0] == rows[1]
        weights = [load_file(next((root / name / "model").glob("*.safetensors"))) for root in (folder, alone)]
        assert weights[0].keys() == weights[1].keys()
        for key, value in weights[1].items():
            torch.testing.assert_close(weights[0][key], value, atol=1e-5, rtol=0)
        if "adapters" not in name:
            before = dict(make_model().named_parameters())
            assert max((value - before[key]).abs().max().item() for key, value in weights[1].items()) > 1e-3


def test_two_processes_train_the_weights_of_one(tmp_path: Path) -> None:
    train_together("torchrun", tmp_path / "two", IN_ALL_TESTS)
    check(tmp_path / "two", tmp_path / "one", IN_ALL_TESTS)


@pytest.mark.skipif(not WHOLE, reason="needs GPO_PROCESSES=whole: a minute of processor time")
def test_other_methods_and_settings_in_two_processes(tmp_path: Path) -> None:
    cases = [name for name in CASES if name not in IN_ALL_TESTS]
    train_together("torchrun", tmp_path / "two", cases)
    check(tmp_path / "two", tmp_path / "one", cases)


@pytest.mark.skipif(not WHOLE, reason="needs GPO_PROCESSES=whole: a minute of processor time")
def test_three_processes_where_a_batch_has_fewer_rows_for_some(tmp_path: Path) -> None:
    cases = ["dpo", "kto", "grpo"]
    train_together("three", tmp_path / "three", cases)
    check(tmp_path / "three", tmp_path / "one", cases, 3)


@pytest.mark.skipif(not WHOLE, reason="needs GPO_PROCESSES=whole: a minute of processor time")
def test_two_processes_with_shards_train_and_save_the_weights_of_one(tmp_path: Path) -> None:
    train_together("fsdp2", tmp_path / "two", list(CASES))
    check(tmp_path / "two", tmp_path / "one", list(CASES), sharded=True)


def row(*ids: int) -> TrainingRow:
    return TrainingRow(ids[:1], ids[1:], 0.0, 0, Start("p", ids[:1]), None)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_each_row_belongs_to_one_process_and_alike_rows_to_the_same(processes: int) -> None:
    rows = [row(1, 2, 3, 4), row(5, 6, 7, 8), row(1, 2, 3, 9), row(5, 6, 7, 0)]
    parts = [part(rows, process, processes) for process in range(processes)]
    assert sorted(each.ids for own in parts for each in own) == sorted(each.ids for each in rows)
    if processes == 2:
        assert [{each.ids[0] for each in own} for own in parts] == [{1}, {5}]


def test_a_batch_is_divided_and_nobody_has_none() -> None:
    rows = [{"id": i} for i in range(11)]

    def parts(process: int) -> list[tuple[list[int], list[float]]]:
        batches = Batches(rows, range(11), 4, 2, process, 3, lambda own: {"ids": [row["id"] for row in own]})  # type: ignore[arg-type]
        return [(batch["ids"], batch["part"].tolist()) for batch in (batches[i] for i in range(len(batches)))]

    found = [parts(process) for process in range(3)]
    assert [own[0] for own in found] == [([0, 3], [2, 4, 1.5]), ([1], [1, 4, 0.75]), ([2], [1, 4, 0.75])]
    assert [own[2] for own in found] == [([8], [1, 3, 1]), ([9], [1, 3, 1]), ([10], [1, 3, 1])]
    fewer = Batches(rows, range(9), 4, 4, 2, 3, lambda own: {"ids": [row["id"] for row in own]})  # type: ignore[arg-type]
    assert fewer[2]["ids"] == [8]
    assert fewer[2]["part"].tolist() == [0, 1, 0]
    # Every row of a step counts alike: 2 of 4 with weight 1.5, 1 of 4 with .75, over 3 processes and 2 batches, is 1/8.
    assert 1.5 / 2 / 3 / 2 == 0.75 / 1 / 3 / 2 == 1 / 8


def test_the_batches_of_a_step_are_put_together_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for processes, accumulated, expected in ((1, 8, 1), (8, 8, 8), (4, 6, 3), (64, 8, 8), (8, 1, 1)):
        for kind, together in ((DPO, expected), (KTO, 1)):
            method = kind(None, gradient_accumulation=accumulated)
            monkeypatch.setitem(vars(method), "accelerator", SimpleNamespace(num_processes=processes))
            assert method._together() == together


@pytest.mark.parametrize(
    ("kind", "stage", "own_update", "said"),
    [
        (DistributedType.FSDP, 0, False, "--fsdp_version 2"),
        (DistributedType.DEEPSPEED, 2, True, "Got DEEPSPEED of stage 2"),
        (DistributedType.DEEPSPEED, 3, False, "Got DEEPSPEED of stage 3"),
        (DistributedType.MEGATRON_LM, 0, False, "Got MEGATRON_LM"),
        (DistributedType.DEEPSPEED, 2, False, None),
        (DistributedType.MULTI_GPU, 0, True, None),
    ],
)
def test_ways_of_training_together_that_would_go_wrong_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: DistributedType, stage: int, own_update: bool, said: str | None
) -> None:
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    launched = SimpleNamespace(distributed_type=kind, is_fsdp2=False, state=state)
    monkeypatch.setattr("gpo.methods.processes.Accelerator", lambda: launched)
    if said is None:
        assert join(own_update=own_update) is launched
    else:
        with pytest.raises(ConfigError, match=said):
            join(own_update=own_update)


@pytest.mark.parametrize(("uses", "left"), [(None, None), ("true", "false")])
def test_the_environment_stays_what_it_is_where_no_model_is_sharded(
    monkeypatch: pytest.MonkeyPatch, uses: str | None, left: str | None
) -> None:
    monkeypatch.setattr("gpo.methods.processes.Accelerator", lambda: SimpleNamespace(distributed_type=None, state=None))
    for name, value in (("ACCELERATE_USE_FSDP", uses), ("FSDP_CPU_RAM_EFFICIENT_LOADING", None)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    join(own_update=True)
    assert os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING") == left


def test_a_loss_of_a_whole_batch_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    method = DPO(None, loss_type="aot")
    monkeypatch.setitem(vars(method), "accelerator", SimpleNamespace(num_processes=2))
    with pytest.raises(ConfigError, match="'aot' is of a whole batch and cannot be divided over 2 processes"):
        method._trainer({})
