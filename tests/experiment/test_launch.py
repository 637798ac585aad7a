"""A round trained by several processes: one of them killed, and sampling on a server meanwhile."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_rounds import LETTER_OPTIONS
from transformers import LlamaConfig, LlamaForCausalLM

from fake_server import FakeServer
from gpo.cli import main
from gpo.config.options import resolve
from gpo.errors import EngineError
from gpo.experiment.run import Run
from gpo.experiment.training import _why, launch
from gpo.storage.rounds import RoundState
from toy import toy_config

HERE = Path(__file__).parent
TORCHRUN = f"{Path(sys.executable).parent / 'torchrun'} --standalone --nproc-per-node 2"
whole = pytest.mark.skipif(
    os.environ.get("GPO_PROCESSES") != "whole", reason="needs GPO_PROCESSES=whole: a minute of processor time"
)


@pytest.fixture
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join([str(HERE), str(HERE.parent), *filter(None, sys.path)]))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GPO_TRUST", "1")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(path / "model.safetensors"))


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(value, right[key], atol=1e-5, rtol=0) for key, value in left.items())


@whole
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_one_process_of_two_is_killed_and_the_same_command_goes_on(
    tmp_path: Path, letters: Path, on_cpus: None, monkeypatch: pytest.MonkeyPatch, method: str, sharded: bool
) -> None:
    offline = method == "dpo"
    options = {key: text for key, text in LETTER_OPTIONS.items() if not (offline and key == "method.minibatches")}
    options |= {"model": str(letters), "method": method, "arms": "gpo", "rounds": "1", "method.save_steps": "1"}
    options |= {"method.learning_rate": "1e-3"}
    options |= {"method.batch_size": "2", "method.gradient_accumulation": "2"} if offline else {}
    alone = Run(tmp_path / "alone", resolve(options))
    alone.train("gpo")

    monkeypatch.setenv("DIES_ONCE", str(tmp_path / "dead"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(sharded).lower())
    monkeypatch.setenv("FSDP_VERSION", "2")
    both = resolve(options | {"launch": f"{TORCHRUN} {HERE / 'dying.py'}"})
    run = Run(tmp_path / "run", both)
    with pytest.raises(EngineError) as error:
        run.train("gpo")
    said = str(error.value)
    assert "process 1 was ended by SIGKILL" in said
    assert "The same command goes on" in said
    assert "\n" not in said
    assert list((run.files.arm("gpo") / "unfinished").glob("checkpoint-*" if offline else "update.pt"))

    again = Run(tmp_path / "run", both)
    again.train("gpo")
    assert close(weights(again.files.model("gpo")), weights(alone.files.model("gpo")))
    assert not close(weights(again.files.model("gpo")), weights(letters))
    rows = [(each.files.arm("gpo") / "training.jsonl").read_text().splitlines() for each in (again, alone)]
    assert len(rows[0]) == len(rows[1])
    for found, wanted in zip(*(map(json.loads, each) for each in rows), strict=True):
        # Offline, two are means over the batches of a step, which are put together.
        kept = found.keys() - {"tokens_per_second"} - ({"entropy", "kl"} if offline else set())
        expected = {key: wanted[key] for key in kept}
        assert {key: found[key] for key in kept} == pytest.approx(expected, abs=1e-5, rel=1e-5)


def trainable(path: Path) -> Path:
    """Weights for what the server serves."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(path)).save_pretrained(path)
    return path


@whole
def test_one_command_samples_on_a_server_and_trains_in_two_processes(
    fake: FakeServer, tmp_path: Path, on_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trainable(Path(fake.root))
    run = tmp_path / "run"
    words: dict[str, Any] = {
        "engine": "openai", "engine.base_url": fake.url, "model": model, "task": "test_remote:WordTask",
        "segmenter": "fixed_tokens", "segmenter.size": "3", "arms": "gpo", "rounds": "2", "problems": "6",
        "rollouts": "4", "max_tokens": "12", "test_problems": "2", "test_samples": "2", "method": "grpo",
        "method.learning_rate": "1e-2", "method.lora": "none", "launch": f"{TORCHRUN} -m",
    }  # fmt: skip
    assert main(["run", str(run), *(word for key, value in words.items() for word in (f"--{key}", str(value)))]) == 0
    capsys.readouterr()
    brought = [body["kwargs"]["weights_path"] for path, body in fake.asked if path == "/collective_rpc"]
    assert set(brought) >= {str(run / "arms" / "gpo" / end) for end in ("checkpoints/1", "model")}
    rows = [json.loads(line) for line in (run / "arms" / "gpo" / "training.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [0, 1]
    assert not close(weights(run / "arms" / "gpo" / "model"), weights(model))
    assert (run / "table.md").exists()


TRAINER = """
import json, sys
from pathlib import Path
run, arm, number = sys.argv[-3:]
print("weights are read")
for step in (1, 2, 3):
    print(f"step {step} of 3", flush=True)
print("a complaint", file=sys.stderr)
(Path(run) / "arms" / arm / "training.json").write_text(json.dumps({"loss": 1.0}))
sys.exit(int(sys.argv[1]))
"""


def test_a_launched_training_says_its_steps(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    run = Run(tmp_path / "run", toy_config())
    run.reset("gpo")
    work, state, steps = run, RoundState.of(run.files, "gpo"), list[tuple[int, int]]()

    def train(code: int, on_step: Callable[[int, int], None]) -> dict[str, float]:
        return launch(work, state, f"{sys.executable} {tmp_path / 'trainer.py'} {code}", on_step)

    assert train(0, lambda done, all_: steps.append((done, all_))) == {"loss": 1.0}
    assert steps == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(EngineError, match="ended with code 3: a complaint The same command goes on"):
        train(3, lambda done, all_: None)
    with pytest.raises(ZeroDivisionError):
        train(0, lambda done, all_: divmod(done, 0))


ENDED = """
Traceback (most recent call last):
RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234
gpo: The method DPO failed: RuntimeError: Connection closed by peer
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 4)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : {} (pid: 5)
  traceback : whatever
"""


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (ENDED.format(-9), "process 1 was ended by SIGKILL, perhaps because the memory was full."),
        (ENDED.format(-11), "process 1 was ended by SIGSEGV."),
        (ENDED.format(1), "The method DPO failed: RuntimeError: Connection closed by peer"),
        ("[rank1]: ValueError: no such thing\n\nx.ChildFailedError:\n", "[rank1]: ValueError: no such thing"),
        ("no GPU here\n", "no GPU here"),
    ],
)
def test_one_cause_is_told_of_all_that_several_processes_say(said: str, why: str) -> None:
    assert _why(said) == why


LAUNCHER = """
import os, subprocess, sys
subprocess.Popen(["sleep", "600"], stdin=open(sys.argv[1], "w"))
print("step 1 of 3", flush=True)
"""


def test_no_process_of_a_training_outlives_the_command(tmp_path: Path) -> None:
    (tmp_path / "launcher.py").write_text(LAUNCHER + "import time; time.sleep(600)")
    run = Run(tmp_path / "run", toy_config())
    run.reset("gpo")
    os.mkfifo(tmp_path / "open")  # for as long as the process that the launcher has started is there
    ours = os.open(tmp_path / "open", os.O_RDONLY | os.O_NONBLOCK)

    def stop(done: int, steps: int) -> None:
        raise KeyboardInterrupt

    words = f"{sys.executable} {tmp_path / 'launcher.py'} {tmp_path / 'open'}"
    with pytest.raises(KeyboardInterrupt):
        launch(run, RoundState.of(run.files, "gpo"), words, stop)
    assert select.select([ours], [], [], 10)[0]
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_a_training_goes_on_where_nobody_reads_its_steps() -> None:
    script = "from gpo.experiment.training import _say; [_say(each, 3) for each in range(3)]; print(1)"
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-c", script], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")
