"""A run that samples on a server: nothing lost, nothing counted twice, and what went wrong is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from fake_server import FakeServer, cut, save_model, serving, status
from gpo.cli import main
from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.errors import EngineError
from gpo.experiment.run import Run
from gpo.storage.events import Progress
from gpo.storage.rounds import RoundState
from gpo.types import Group, Message, Problem, RoundContext, Score, Split, tokens_of


@dataclass(frozen=True)
class WordTask:
    """A response is right if it has one of some words."""

    def problems(self, split: Split) -> Sequence[Problem]:
        return [Problem(f"{split}{i}", f"w{i} w{i + 1}", "w7") for i in range(2, 8)]

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        right = not {"w7", "w8"}.isdisjoint(text.split())
        return Score(float(right), "right" if right else "wrong", text)


@dataclass
class OtherWeights:
    """Saves what the server takes for other weights."""

    trains_on: ClassVar[Literal["groups"]] = "groups"
    word: str = "trained"

    def update(self, groups: Sequence[Group], context: RoundContext = RoundContext()) -> dict[str, float]:
        return {"steps": 1.0}

    def save(self, path: Path) -> None:
        save_model(path)
        (path / "seed").write_text(f"{self.word} {path.parent.name}")


def config(fake: FakeServer, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "task": Spec("task", "test_remote:WordTask"),
        "model": fake.root,
        "engine": Spec("engine", "openai", {"base_url": fake.url, "timeout": 2.0, "patience": 2.0}),
        "method": Spec("method", "test_remote:OtherWeights"),
        "segmenter": Spec("segmenter", "fixed_tokens", {"size": 3}),
        "arms": {"plain": "none", "gpo": "monte_carlo"},
        "problems": 6,
        "test_problems": 2,
        "rollouts": 4,
        "max_tokens": 12,
        "budget": 3.0,
        "test_samples": 2,
        "chunk": 8,
    }
    return RunConfig(**settings | changes)


def groups(run: Run) -> list[Group]:
    return [*(g for arm in run.config.arms for g in RoundState.of(run.files, arm).groups()), *answers(run)]


def answers(run: Run) -> list[Group]:
    return [group for name in run.models() for group in run.files.evaluation(name).read()]


@pytest.mark.usefixtures("unplotted")
def test_a_run_on_a_server_that_fails_now_and_then(fake: FakeServer, tmp_path: Path) -> None:
    fake.faults = [status(503), cut, status(429, Retry_After="0.01")] * 3
    told: list[Progress] = []
    run = Run(tmp_path / "run", config(fake), on_progress=told.append)
    results = run.all()
    assert results
    assert fake.seed == "trained gpo"  # the last that was evaluated
    shown = run.files.events.trouble()
    assert (shown["HTTP 503"], shown["HTTP 429"], shown["cut connection"]) == (3, 3, 3)
    # What the same run samples without trouble.
    with serving(FakeServer(fake.root)) as good:
        other = Run(tmp_path / "other", config(good))
        other.all()
    assert groups(run) == groups(other)
    assert other.files.events.trouble() == {}
    # The tokens of the events are those of the rows.
    events = [json.loads(line) for line in (run.files.path / "events.jsonl").read_text().split("\n") if line]
    sampled = sum(event["tokens"] for event in events)
    unique = [
        *run.files.rollouts.read(),
        *(g for a in run.config.arms for g in RoundState.of(run.files, a).groups()[6:]),
    ]
    assert sampled == tokens_of(unique) + tokens_of(answers(run))


def test_what_was_answered_before_a_server_died_is_not_asked_again(fake: FakeServer, tmp_path: Path) -> None:
    fake.always = status(503)
    fake.faults = [lambda *_: False] * 13  # within the second chunk of 8 rollouts
    impatient = config(fake, engine=Spec("engine", "openai", {"base_url": fake.url, "patience": 0.5}))
    with pytest.raises(EngineError, match=r"HTTP 503: .*What is finished is kept; once it answers, the same"):
        Run(tmp_path / "run", impatient).rollout()
    answered = list(fake.served)
    assert len(answered) == 13
    before = len(fake.bodies())
    fake.always = None
    run = Run(tmp_path / "run", impatient)
    assert len(run.rollout()) == 6
    asked = fake.bodies()[before:]
    known = Counter((tuple(body["prompt"]), body["seed"]) for body in [*answered, *asked])
    whole = {key for key, count in known.items() if count == 1}
    # Of a request of 4 rollouts that was answered in part all are asked again, and nothing else is.
    assert len(known) == 24
    assert len(whole) >= 24 - 3
    assert not (tmp_path / "run" / "journal.jsonl").exists()


@pytest.mark.usefixtures("unplotted")
def test_the_command_line_samples_on_a_server(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-not-to-be-seen"
    fake.key = secret
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    fake.faults = [status(500)]
    run = str(tmp_path / "run")
    task = ["--task", "test_remote:WordTask"]
    words = ["--engine", "openai", "--engine.base_url", fake.url, "--model", fake.root, *task]
    few = ["--problems", "2", "--rollouts", "4", "--max_tokens", "12", "--test_problems", "2", "--test_samples", "2"]
    more = ["--method", "test_remote:OtherWeights", "--segmenter", "fixed_tokens", "--segmenter.size", "3"]
    assert main(["run", run, *words, *few, *more]) == 0
    assert "1 HTTP 500; asked again" in " ".join(capsys.readouterr().out.split())
    assert main(["locate", run, "--question", "w5 w6", "--answer", "w7"]) == 0
    for file in Path(run).rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()
    assert main(["evaluate", str(tmp_path / "e"), "--models", f"base={fake.root}", *words[:4], *task]) == 0
    capsys.readouterr()
    fake.server.shutdown()
    fake.server.server_close()
    assert main(["rollout", str(tmp_path / "new"), *words, "--engine.patience", "0.1"]) == 75
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"gpo: No server answers at {fake.url} (no connection). Start it, or name another")
    assert "\n" not in said
    assert not (tmp_path / "new" / "config.json").exists()
