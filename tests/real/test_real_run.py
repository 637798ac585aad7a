"""A whole run on a pretrained model: killed and gone on with, reported, located in, and a file of GSM8K."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_questions import write
from rich.console import Console

from gpo.config.options import resolve
from gpo.experiment.run import Run
from gpo.report.closeup import close_up
from gpo.report.command import write_report
from gpo.report.reading import read_run

SMALL = {
    "problems": "1",
    "rollouts": "6",
    "budget": "2",
    "reset_rollouts": "4",
    "locate_per_problem": "1",
    "estimator.rollouts": "2",
    "pairs.most": "1",
    "test_problems": "1",
    "test_samples": "1",
    "max_tokens": "16",
    "arms": "gpo",
    "method.learning_rate": "1e-4",
    "method.lora": "4",
    "piece_seconds": "0.1",
}


@pytest.fixture(scope="module")
def finished(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Run(folder / "run", resolve({**write(folder), **SMALL, "model": str(smollm2)})).all()
    return folder / "run"


def test_a_run_has_pairs_adapters_and_a_table(finished: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["segmenter"]["sentence_tokens"] == 30
    assert (config["method"]["batch_size"], config["method"]["gradient_accumulation"]) == (2, 8)
    assert (finished / "arms/gpo/pairs.jsonl").read_text()
    assert (finished / "arms/gpo/model/adapter_model.safetensors").is_file()
    results = json.loads((finished / "results.json").read_text())
    assert {model["name"] for model in results["models"]} == {"base", "gpo"}


def test_a_run_that_was_killed_goes_on_with_the_same_rollouts(finished: Path, smollm2: Path, tmp_path: Path) -> None:
    """Killed while it sampled a chunk in pieces, gone on with in another process."""
    options = {**write(finished.parent), **SMALL, "model": str(smollm2)}
    command = [sys.executable, "-m", "gpo", "run", str(tmp_path / "run")]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    while not (tmp_path / "run/journal.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    Run(tmp_path / "run", resolve(options)).rollout()
    assert (tmp_path / "run/rollouts.jsonl").read_bytes() == (finished / "rollouts.jsonl").read_bytes()


def test_the_report_shows_what_was_searched(finished: Path) -> None:
    page = write_report(finished, finished.parent / "report.html").read_text()
    assert "What is the capital of France?" in page
    assert "smollm2" in page.casefold()
    assert read_run(Run(finished).files, "gpo").searched


def test_one_question_is_located(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "model": str(smollm2),
        "question": "What is the capital of France?",
        "answer": "Paris",
        "max_tokens": "16",
        "estimator": "monte_carlo",
        "estimator.rollouts": "2",
        "segmenter": "fixed_tokens",
        "segmenter.size": "8",
    }
    close_up(None, options, Console(width=80))
    said = capsys.readouterr().out
    assert "What is the capital of France?" in said
    assert "Sampled" in said


def test_questions_of_gsm8k_are_asked_and_graded(smollm2: Path, data: Path, tmp_path: Path) -> None:
    options = {
        "task": "gsm8k",
        "task.path": str(data / "gsm8k"),
        "model": str(smollm2),
        **SMALL,
        "rollouts": "2",
        "max_tokens": "12",
    }
    run = Run(tmp_path / "run", resolve(options))
    [group] = run.rollout()
    assert run.problems("train")[0].id.startswith("gsm8k/train/")
    assert 0 < max(len(t.completion.token_ids) for t in group.trajectories) <= 12
    assert {t.score.verdict for t in group.trajectories} <= {"wrong", "ungradable", "right"}
