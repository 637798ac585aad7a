"""What `gpo states` writes is what the model computes at each boundary, beside the texts and values of the search."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from gpo.cli import main
from gpo.errors import ConfigError, DataError
from gpo.report.states import write_states
from gpo.storage.directory import RunDirectory
from gpo.storage.files import write_json
from written_run import NAN, Written, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=1100, **shape)).save_pretrained(tmp_path / "model")
    rows = [
        Written("Why?", ["first", "second", "third"], [0.5, NAN, 0.25, 0.0], critical=1, others=["right"]),
        Written("What?", ["only"], [0.75, 1.0], critical=0, verdict="right"),
    ]
    directory = write_run(tmp_path / "run", rows)
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", {**config, "task": {"name": "chain"}, "model": str(tmp_path / "model")})
    return directory


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


def test_states_are_those_of_the_model_and_stand_beside_texts_and_values(run: Path) -> None:
    path, boundaries = write_states(run, layers=(0, 1, -1))
    tensors, rows = load_file(path), rows_of(path)
    assert boundaries == len(rows) == 6
    assert tensors["states"].shape == (6, 3, 16)
    assert tensors["states"].dtype == np.float16
    assert [row["step"] for row in rows] == ["", "first", "second", "third", "", "only"]
    assert [row["value"] for row in rows] == [0.5, None, 0.25, 0.0, 0.75, 1.0]
    assert [row["critical"] for row in rows] == [False, False, True, False, False, True]
    np.testing.assert_array_equal(tensors["values"], [0.5, NAN, 0.25, 0.0, 0.75, 1.0])
    np.testing.assert_array_equal(tensors["rewards"], [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(tensors["counts"], [row["count"] for row in rows])
    model = LlamaForCausalLM.from_pretrained(run.parent / "model").eval()
    [(trajectory, _), _] = RunDirectory(run).searched("gpo")
    ids = torch.tensor([[*trajectory.start.prompt_ids, *trajectory.response_ids]])
    hidden = model(ids, output_hidden_states=True).hidden_states
    for k, boundary in enumerate(trajectory.boundaries):  # one token of prompt
        expected = [hidden[layer][0, boundary].detach().numpy() for layer in (0, 1, 2)]
        np.testing.assert_allclose(tensors["states"][k], expected, atol=2e-3)


def test_means_are_over_the_step_before_a_boundary(run: Path) -> None:
    path, _ = write_states(run, run / "elsewhere", layers=(1,), mean=True)
    states = load_file(path)["states"]
    model = LlamaForCausalLM.from_pretrained(run.parent / "model").eval()
    [(trajectory, _), _] = RunDirectory(run).searched("gpo")
    ids = torch.tensor([[*trajectory.start.prompt_ids, *trajectory.response_ids]])
    hidden = model(ids, output_hidden_states=True).hidden_states[1][0].detach().numpy()
    np.testing.assert_allclose(states[:3, 0], [hidden[0], hidden[1:3].mean(0), hidden[3:5].mean(0)], atol=2e-3)


def test_rollouts_without_a_search_have_no_values(run: Path) -> None:
    few, many = write_states(run)[1], write_states(run, every=True)
    rows = rows_of(many[0])[few:]
    assert rows
    assert all(row["value"] is None and row["count"] == 0 for row in rows)
    assert {row["reward"] for row in rows} == {1.0}


def test_the_command_says_what_it_wrote_and_what_it_cannot(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["states", str(run), "--layers", "0,-1"]) == 0
    assert "6 boundaries" in capsys.readouterr().out
    assert (run / "states/states.safetensors").exists()
    with pytest.raises(ConfigError, match=r"layers 0 to 2 \(0 is its embedding\), got 3"):
        write_states(run, layers=(3,))
    assert main(["states", str(run), "--layers", "all"]) == 2
    assert "expected numbers such as 8,16,-1" in capsys.readouterr().err
    elsewhere = run.parent / "linked"
    elsewhere.mkdir()
    (run / "link").symlink_to(elsewhere)
    with pytest.raises(DataError, match="symbolic link"):
        write_states(run, run / "link")
