"""Arguments of the chat template: every engine gives them to every prompt that is made with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import fake_vllm
from fake_server import FakeServer, save_model, serving
from gpo.config.components import Spec
from gpo.engines import ray
from gpo.engines.hf import HFEngine
from gpo.engines.openai import OpenAIEngine
from gpo.engines.vllm import VLLMEngine
from gpo.errors import ConfigError
from gpo.rollout.prompting import render

TEMPLATE = "{{ messages[0]['content'] }}{% if brief %} w3{% endif %}"
ASKED = [{"role": "user", "content": "w5"}]
BRIEF = {"chat_template_kwargs": {"brief": True}}


@pytest.fixture
def model(tmp_path: Path) -> str:
    save_model(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return str(tmp_path)


def prompts(engine: Any) -> tuple[int, ...]:
    with engine:
        return render(ASKED, engine.tokenizer)


def test_a_model_of_transformers(build: Callable[[str], Any], word_tokenizer: Any) -> None:
    tokenizer = deepcopy(word_tokenizer)
    tokenizer.chat_template = TEMPLATE
    assert prompts(HFEngine(build("llama"), tokenizer)) == (5,)
    assert prompts(HFEngine(build("llama"), tokenizer, **BRIEF)) == (5, 3)
    with pytest.raises(ConfigError, match="chat_template_kwargs has 'short', expected names that the chat template"):
        HFEngine(build("llama"), tokenizer, chat_template_kwargs={"short": True})


def test_a_server(model: str) -> None:
    with serving(FakeServer(model)) as fake:
        assert prompts(OpenAIEngine(model, fake.url)) == (5,)
        assert prompts(OpenAIEngine(model, fake.url, **BRIEF)) == (5, 3)


def test_vllm_in_this_process(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, sleeps=True)
    assert prompts(VLLMEngine(model)) == (5,)
    assert prompts(VLLMEngine(model, **BRIEF)) == (5, 3)


def test_actors_whose_tokenizer_is_given(word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nobody:
        def __init__(self, *_: Any) -> None: ...
        def wake(self) -> None: ...
        def rest(self) -> None: ...

    monkeypatch.setattr(ray, "Pool", Nobody)
    tokenizer = deepcopy(word_tokenizer)
    tokenizer.chat_template = TEMPLATE
    assert prompts(ray.RayEngine("a model", Spec("engine", "hf", BRIEF), tokenizer=tokenizer)) == (5, 3)
