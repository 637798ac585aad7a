"""Models on the same questions with the same seeds: what was asked is kept, what came of it is worked out by hand."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gpo.cli import main
from gpo.config.components import Spec
from gpo.errors import ConfigError, DataError, EngineError
from gpo.evaluation.evaluation import (
    Evaluation,
    EvaluationConfig,
    describe_evaluation,
    is_evaluation,
    model_names,
    resolve_evaluation,
)
from gpo.experiment.run import Run
from gpo.storage.directory import RunDirectory
from gpo.storage.files import read_json, write_json
from gpo.storage.lock import locked
from gpo.toy import ChainEngine, ChainTask, random_process
from gpo.types import Problem, Score, Split
from toy import toy_config

FILES = ("config.json", "problems.jsonl", "evaluation/a.jsonl", "evaluation/b.jsonl", "results.json", "table.md")


@dataclass(frozen=True)
class TrainOnly(ChainTask):
    def problems(self, split: Split) -> list[Problem]:
        return list(super().problems(split)) if split == "train" else []


def checkpoint(path: Path, seed: int, size: int = 8) -> str:
    """Toy processes of six decisions, saved."""
    ChainEngine(tuple(random_process(seed + i, decisions=3) for i in range(size))).save(path)
    return str(path)


def config(tmp_path: Path, **changes) -> EvaluationConfig:
    models = {name: checkpoint(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 100))}
    return EvaluationConfig(
        **{"models": models, "task": "chain", "engine": "chain", "samples": 4, "chunk": 8, **changes}
    )


def test_every_model_answers_the_same_questions_with_the_same_seeds(tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", 0)
    board = Evaluation(tmp_path / "out", config(tmp_path, models={"a": a, "same": a})).all()
    assert (board.questions, board.samples) == (8, 4)
    first, second = board.models
    assert first.passes == second.passes
    assert first.gain is None
    assert second.gain is not None
    assert second.gain.estimate == 0
    texts = [(tmp_path / f"out/evaluation/{name}.jsonl").read_text() for name in ("a", "same")]
    assert texts[0] == texts[1]
    assert first.tokens == 8 * 4 * 8  # three decisions with a newline each, the answer, the end of sequence
    assert first.verdicts["right"] + first.verdicts["wrong"] == 32


def test_a_model_that_is_added_later_is_compared_with_those_before(tmp_path: Path) -> None:
    both = config(tmp_path)
    whole = Evaluation(tmp_path / "whole", both).all()
    Evaluation(tmp_path / "out", config(tmp_path, models={"a": both.models["a"]})).all()
    kept = (tmp_path / "out/evaluation/a.jsonl").stat().st_mtime_ns
    assert Evaluation(tmp_path / "out", config(tmp_path, models={"b": both.models["b"]})).all() == whole
    assert Evaluation(tmp_path / "out").all() == whole
    assert (tmp_path / "out/evaluation/a.jsonl").stat().st_mtime_ns == kept
    for file in FILES:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_difference_is_paired_by_question(tmp_path: Path) -> None:
    a, b = Evaluation(tmp_path / "out", config(tmp_path, samples=16)).all().models
    assert b.gain is not None
    assert b.gain.estimate == pytest.approx(b.passes[1].estimate - a.passes[1].estimate)
    assert list(a.passes) == [1, 2, 4, 8, 16]
    estimates = [a.passes[k].estimate for k in a.passes]
    assert estimates == sorted(estimates)


def test_engines_with_models_of_their_own_can_be_passed(tmp_path: Path) -> None:
    engine = ChainEngine(tuple(random_process(i, decisions=3) for i in range(8)))
    passed = Evaluation(tmp_path / "passed", config(tmp_path, models={"a": engine})).all()
    saved = Evaluation(tmp_path / "saved", config(tmp_path, models={"a": checkpoint(tmp_path / "a", 0)})).all()
    assert passed == saved


def test_an_evaluation_from_before_tasks_had_a_turn_of_the_system_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"question": "{i}", "answer": "1"}}\n' for i in range(8)))
    task = Spec("task", "file", {"test_path": str(tmp_path / "a.jsonl"), "instruction": ""})
    both = config(tmp_path, task=task)
    Evaluation(tmp_path / "out", both).all()
    stored = read_json(tmp_path / "out/config.json")
    assert stored["task"].pop("system") == ""
    write_json(tmp_path / "out/config.json", stored)
    assert len(Evaluation(tmp_path / "out", both).all().models) == 2


def test_other_settings_in_the_same_place_are_refused(tmp_path: Path) -> None:
    Evaluation(tmp_path / "out", config(tmp_path)).all()
    with pytest.raises(ConfigError, match=r"other settings: seed was 0, now 1\."):
        Evaluation(tmp_path / "out", config(tmp_path, seed=1))
    with pytest.raises(ConfigError, match=r"models\.a was"):
        Evaluation(tmp_path / "out", config(tmp_path, models={"a": str(tmp_path / "b")}))
    with pytest.raises(ConfigError, match="is no evaluation"):
        Evaluation(tmp_path / "nothing")
    Run(tmp_path / "run", toy_config()).problems("train")
    assert not is_evaluation(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a run, no evaluation"):
        Evaluation(tmp_path / "run", config(tmp_path))


def test_a_split_without_questions_is_an_error(tmp_path: Path) -> None:
    task = Spec("task", "test_evaluation:TrainOnly")
    with pytest.raises(DataError, match="no test questions"):
        Evaluation(tmp_path / "out", config(tmp_path, task=task)).all()
    assert Evaluation(tmp_path / "out2", config(tmp_path, task=task, split="train", limit=3)).all().questions == 3


def test_nothing_is_settled_before_a_model_has_samples(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Evaluation(out, config(tmp_path))
    assert not out.exists()
    with pytest.raises(EngineError, match="No toy processes"):
        Evaluation(out, config(tmp_path, models={"lost": str(tmp_path / "nowhere")})).all()
    with pytest.raises(DataError, match="no test questions"):
        Evaluation(out, config(tmp_path, task=Spec("task", "test_evaluation:TrainOnly"))).all()
    assert [file.name for file in out.iterdir()] == [".lock"]
    # What an interrupted call has left without a sample does not bind either.
    write_json(out / "config.json", describe_evaluation(config(tmp_path, samples=3, models={"lost": "nowhere"})))
    RunDirectory(out).write_problems({"test": [Problem("old", "old", "old")]})
    Evaluation(out, config(tmp_path)).all()
    Evaluation(tmp_path / "whole", config(tmp_path)).all()
    for file in FILES:
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_model_that_could_not_be_loaded_may_be_corrected(tmp_path: Path) -> None:
    good = config(tmp_path)
    with pytest.raises(EngineError, match="No toy processes"):
        Evaluation(tmp_path / "out", replace(good, models={"a": good.models["a"], "b": "typo"})).all()
    board = Evaluation(tmp_path / "out", good).all()
    assert board == Evaluation(tmp_path / "whole", good).all()
    assert read_json(tmp_path / "out/config.json")["models"] == dict(good.models)


def test_settings_are_written_by_the_process_that_holds_the_directory(tmp_path: Path) -> None:
    waiting = Evaluation(tmp_path / "out", config(tmp_path))
    with locked(tmp_path / "out"), pytest.raises(ConfigError, match="works in"):
        waiting.all()
    assert not (tmp_path / "out/config.json").exists()
    Evaluation(tmp_path / "out", config(tmp_path, seed=1)).all()
    with pytest.raises(ConfigError, match="seed was 1, now 0"):
        waiting.all()


def test_an_answer_that_is_lost_is_missed(tmp_path: Path) -> None:
    Evaluation(tmp_path / "out", config(tmp_path)).all()
    file = tmp_path / "out/evaluation/a.jsonl"
    whole = file.read_bytes().split(b"\n")
    for lost in (0, 1, 3):  # chunks are of two questions
        file.write_bytes(b"\n".join(whole[:lost] + whole[lost + 1 :]))
        with pytest.raises(DataError, match=rf"a\.jsonl:{lost + 1}: .* Delete this line and all after it"):
            Evaluation(tmp_path / "out").all()
    file.write_bytes(b"\n".join(whole[:3]) + b"\n")
    Evaluation(tmp_path / "out").all()
    assert file.read_bytes() == b"\n".join(whole)


CLOSED: list[object] = []


@dataclass
class Closing(ChainEngine):
    def close(self) -> None:
        CLOSED.append(self.processes)
        super().close()


def test_an_engine_is_closed_after_its_turn_unless_it_was_passed(tmp_path: Path) -> None:
    both = config(tmp_path, engine="test_evaluation:Closing")
    CLOSED.clear()
    Evaluation(tmp_path / "out", both).all()
    assert len(CLOSED) == 2
    Evaluation(tmp_path / "out", both).all()
    assert len(CLOSED) == 2
    passed = Closing(tuple(random_process(i, decisions=3) for i in range(8)))
    Evaluation(tmp_path / "passed", config(tmp_path, models={"a": passed})).all()
    assert len(CLOSED) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": 0.0}, "Greedy samples are all alike"),
        ({"models": {}}, "Which models"),
        ({"models": {"../a": "x"}}, "cannot be called"),
    ],
)
def test_bad_settings_say_what_is_wrong(changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**changes)


def test_models_have_names() -> None:
    assert model_names("reasoner, runs/gpo/arms/gpo/model") == {
        "reasoner": "reasoner",
        "runs_gpo_arms_gpo_model": "runs/gpo/arms/gpo/model",
    }
    assert model_names("/home/me/models/small, /tmp/model, /home/me/b/model") == {
        "small": "/home/me/models/small",
        "tmp_model": "/tmp/model",
        "b_model": "/home/me/b/model",
    }
    assert model_names("/home/me/small, small") == {"me_small": "/home/me/small", "small": "small"}
    known = {"model": "/tmp/model", "home_me_old": "/home/me/old"}  # keep their names
    assert model_names("/home/me/old, /a/model, /tmp/model", known) == {
        "home_me_old": "/home/me/old",
        "a_model": "/a/model",
        "model": "/tmp/model",
    }
    assert model_names("before=reasoner,after=./x y") == {"before": "reasoner", "after": "./x y"}
    with pytest.raises(ConfigError, match="Two models are called 'a'"):
        model_names("a,./a")
    with pytest.raises(ConfigError, match="Two models are called"):
        model_names("/a,/a")


def test_options_are_parsed_and_unknown_ones_named() -> None:
    got = resolve_evaluation(
        {"models": "x=a", "task": "chain", "task.size": "3", "limit": "none", "temperature": "0.5"}
    )
    assert (got.models, got.limit, got.temperature) == ({"x": "a"}, None, 0.5)
    assert isinstance(got.task, Spec)
    assert got.task.settings == {"size": 3}
    with pytest.raises(ConfigError, match=r"--sample'.*--samples"):
        resolve_evaluation({"task": "chain", "engine": "chain", "sample": "3"})


def test_the_command_line_evaluates_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, out = checkpoint(tmp_path / "a", 0), checkpoint(tmp_path / "b", 9), str(tmp_path / "out")
    options = ["--task", "chain", "--engine", "chain", "--samples", "2"]
    assert main(["evaluate", out, "--models", f"a={a},b={b}", *options]) == 0
    shown = capsys.readouterr().out
    assert "pass@2" in shown
    assert "minus a" in shown
    assert main(["evaluate", out]) == 0
    assert main(["evaluate", out, "--samples", "3"]) == 2
    assert "samples was 2, now 3" in capsys.readouterr().err
    assert main(["evaluate", "--help"]) == 0
    assert "--models A,B" in capsys.readouterr().out


def test_a_thousand_questions_survive_sigkill(tmp_path: Path) -> None:
    models = {name: checkpoint(tmp_path / name, seed, 1000) for name, seed in (("a", 0), ("b", 5000))}
    text = ",".join(f"{name}={path}" for name, path in models.items())
    options = ["--models", text, "--task", "chain", "--task.size", "1000", "--engine", "chain", "--samples", "2"]
    command = [sys.executable, "-m", "gpo", "evaluate", str(tmp_path / "killed"), *options, "--chunk", "40"]
    grown = tmp_path / "killed/evaluation/a.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not (grown.exists() and grown.stat().st_size):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = grown.read_bytes().count(b'"left": 0')
    assert 0 < done < 50
    with grown.open("ab") as file:
        file.write(b'{"chunk": 99')  # as if the kill had come in the middle of a line

    assert main(command[3:]) == 0
    assert main(["evaluate", str(tmp_path / "whole"), *options, "--chunk", "40"]) == 0
    events = [json.loads(line) for line in (tmp_path / "killed/events.jsonl").read_text().splitlines()]
    pieces = [event["done"] for event in events if event["arm"] == "a"]
    assert pieces[-(50 - done) :] == [20 * (i + 1) for i in range(done, 50)]  # nothing finished was asked again
    assert len(pieces) <= 50
    for file in FILES:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    results = json.loads((tmp_path / "killed/results.json").read_text())
    assert results["questions"] == 1000
    assert [model["verdicts"]["failed"] for model in results["models"]] == [0, 0]


def test_an_engine_with_a_model_of_its_own_is_not_called_by_other_names(tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", 0)
    with pytest.raises(ConfigError, match=r"has the model reasoner. Name it with --models reasoner"):
        EvaluationConfig(models={"a": a}, engine=Spec("engine", "hf", {"model": "reasoner"}))
    for model in (None, a):
        assert EvaluationConfig(models={"a": a}, engine=Spec("engine", "hf", {"model": model})).models


def test_a_run_is_no_model(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config())
    run.train("gpo")
    with pytest.raises(EngineError, match=r"is a run\. Its models are .*arms/gpo/model: name one"):
        Evaluation(tmp_path / "out", EvaluationConfig(models={"run": str(tmp_path)}, limit=2)).all()


@dataclass(frozen=True)
class Ungraded(ChainTask):
    def score(self, problem: Problem, text: str) -> Score:
        raise ZeroDivisionError("no weight")


def test_a_grader_that_never_works_ends_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"None of the first 8 answers could be graded: ZeroDivisionError: no weight"):
        Evaluation(tmp_path / "out", config(tmp_path, task=Ungraded())).all()
    assert not (tmp_path / "out/evaluation").exists()
