"""Offline methods at the command line: adapters are evaluated, and bad pairs are one line."""

import json
from pathlib import Path

import pytest
from peft import PeftConfig

import gpo
from gpo.cli import main
from gpo.config.presets import model_path
from gpo.methods.simpo import SimPO
from gpo.types import ModelRef, Pair


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    method = SimPO(model_path("reasoner"), lora=4, learning_rate=5e-2, epochs=10, warmup=0.0)
    tokenizer = method.policy.tokenizer
    prompt = tuple(tokenizer.encode("<|user|>not ( True ) is<|assistant|>"))
    chosen, rejected = (tuple(tokenizer.encode(f"So the answer is {word}")) for word in ("False", "True"))
    method.update([Pair("p", prompt, (), chosen, rejected, "", "", "", "")])
    method.save(folder / "adapters")
    method.merge = True
    method.save(folder / "merged")
    return {"base": "reasoner", **{name: str(folder / name) for name in ("adapters", "merged")}}


def test_adapters_name_their_base_model(models: dict[str, str]) -> None:
    assert PeftConfig.from_pretrained(models["adapters"]).base_model_name_or_path == model_path("reasoner")
    assert not (Path(models["merged"]) / "adapter_config.json").exists()


def test_evaluate_takes_adapters_and_answers_as_the_merged_model_does(models: dict[str, str], tmp_path: Path) -> None:
    named = ",".join(f"{name}={path}" for name, path in models.items())
    options = ("--limit", "6", "--samples", "1", "--temperature", "0", "--max_tokens", "40", "--split", "dev")
    assert main(["evaluate", str(tmp_path / "out"), "--models", named, *options]) == 0
    texts = {
        name: [
            [t["completion"]["token_ids"] for t in json.loads(line)["trajectories"]]
            for line in (tmp_path / "out" / "evaluation" / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in models
    }
    assert len(texts["base"]) == 6
    assert texts["adapters"] == texts["merged"]
    assert texts["adapters"] != texts["base"]


def test_the_engine_samples_from_adapters(models: dict[str, str]) -> None:
    request = gpo.types.Request((1, 422, 2), n=1, max_tokens=8, seed=0)  # type: ignore[attr-defined]
    drawn = []
    for name in ("adapters", "merged"):
        engine = gpo.make("engine", "hf", model=model_path("reasoner"))
        engine.load(ModelRef(models[name], name))
        drawn.append(engine.generate([request], temperature=0.0)[0][0].token_ids)
    assert drawn[0] == drawn[1]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of toy processes up to its pairs, to be trained with DPO on the embedded reasoner."""
    monkeypatch.setenv("GPO_DEBUG", "")
    toy = ("--task", "chain", "--task.size", "2", "--engine", "chain", "--method", "dpo", "--rollouts", "4")
    whole = ("--method.lora", "none")
    assert main(["build", str(tmp_path / "run"), *toy, *whole, "--arms", "plain", "--budget", "3"]) == 0
    return tmp_path / "run"


def fails(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["train", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpo: ")
    assert error.count("\n") == 1
    assert not (run / "arms" / "plain" / "model").exists()
    return error


def test_no_pair_at_the_command_line_leaves_the_model_as_it_was(built: Path) -> None:
    (built / "arms/plain/pairs.jsonl").write_text("")
    assert main(["train", str(built)]) == 0
    told = json.loads((built / "arms/plain/training.json").read_text())
    assert told.items() >= {"skipped": 1.0, "pairs": 0.0, "pairs_too_long": 0.0, "steps": 0.0}.items()
    begun, saved = (
        SimPO(path).policy.model.state_dict() for path in (model_path("reasoner"), built / "arms/plain/model")
    )
    assert all(begun[name].equal(weights) for name, weights in saved.items())


def test_a_vocabulary_that_does_not_fit_at_the_command_line(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = built / "arms/plain/pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["chosen_ids"][0] = 1_000_000
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Token id 1000000 is outside the model's vocabulary of" in fails(built, capsys)
