"""The third model writes questions of all sizes in full, and its success falls with the size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from test_pretrain import TINY, settings

import gpo
from gpo.config.presets import model_path
from gpo.engines.hf import HFEngine
from gpo.reasoner import long
from gpo.reasoner.example import Example
from gpo.reasoner.pretrain import Pretraining
from gpo.rollout.sampler import Sampler, question_start


def test_the_data_have_questions_of_all_sizes() -> None:
    rng = Random(0)
    examples = [long.make(rng) for _ in range(2000)]
    people = {example.question.count(" says ") + 1 for example in examples if "tell the truth?" in example.question}
    assert len(people & set(range(2, 17))) >= 14
    assert max(example.solution.count("\n") for example in examples if "stack: empty" in example.solution) > 85


def test_pretraining_takes_them_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "make", lambda rng: Example("One? " * 20, "Two. " * 40, "2"))
    training = Pretraining(replace(settings(tmp_path, 2000), long=True), TINY)
    rows = [ids for batch, _ in training.next_pool(1.0) for ids in batch]
    assert rows
    assert all("One?" in training.tokenizer.decode(ids) for ids in rows)


def test_success_falls_with_the_size_and_solutions_are_whole() -> None:
    engine = HFEngine(model_path("long"))
    accuracy = {}
    for size in (4, 40):
        task = gpo.make("task", "reasoner", sizes=f"dyck_languages {size}", dev_problems=8)
        problems = task.problems("dev")
        sampler = Sampler(engine, task, {problem.id: problem for problem in problems}, max_tokens=800)
        groups = sampler([question_start(problem, task, engine.tokenizer) for problem in problems], 4)
        drawn = [trajectory for group in groups for trajectory in group.trajectories]
        assert sum(len(trajectory.step_ends) for trajectory in drawn) / len(drawn) >= size
        accuracy[size] = sum(trajectory.score.right for trajectory in drawn) / len(drawn)
    assert accuracy[4] > 0.8
    assert accuracy[40] < 0.5
