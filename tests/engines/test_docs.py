"""The page on engines: its example fulfils the contract, and its table of architectures is true."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gpo
from gpo.config.components import Spec, make
from gpo.config.options import resolve
from gpo.engines.contract import check_engine
from gpo.engines.hf import HFEngine
from gpo.errors import EngineError
from gpo.experiment.run import Run
from gpo.types import Request

PAGE = (Path(gpo.__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
FUSED, LIBRARY, AGAIN = "LlamaDecoder", "LibraryDecoder", "RecomputingDecoder"
DECODERS = {
    "llama": ("Llama", FUSED),
    "mistral": ("Mistral", FUSED),
    "qwen2": ("Qwen2", FUSED),
    "qwen3": ("Qwen3", FUSED),
    "qwen3-tied": ("Qwen3", FUSED),
    "mistral-sliding": ("sliding window", LIBRARY),
    "qwen3-sliding": ("sliding window", LIBRARY),
    "llama-biased": ("biased output projections", LIBRARY),
    "gemma2": ("Gemma 2", LIBRARY),
    "gemma3": ("Gemma 3", LIBRARY),
    "gpt2": ("GPT-2", LIBRARY),
    "mamba": ("Mamba", AGAIN),
}


@pytest.fixture
def markov(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's engine as a module, and a text that it learns from."""
    example, use = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(example.split("\n")) < 150
    (tmp_path / "markov.py").write_text(example)
    (tmp_path / "use.py").write_text(use)
    (tmp_path / "names.txt").write_text("anna\nhanna\nmartha\nmaria\nann\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_fulfils_the_contract(markov: Path) -> None:
    exec(compile((markov / "use.py").read_text(), "use.py", "exec"), {})


def test_the_example_is_a_component(markov: Path) -> None:
    engine = make("engine", "markov:MarkovEngine", model=str(markov / "names.txt"), context_length=64)
    [[completion]] = engine.generate([Request((109,), 1, 20, 0)], temperature=0.0)
    assert completion.text == "artha" or completion.text.startswith("a")
    assert engine.context_length == 64
    with pytest.raises(EngineError, match="No text to learn from"):
        make("engine", "markov:MarkovEngine", model="nowhere")
    check_engine(engine, [(97, 110), (109,)])


@pytest.mark.parametrize("given", [{"engine": "markov:MarkovEngine", "model": "names.txt"}, {}])
def test_a_run_of_the_example_is_gone_on_with(markov: Path, given: dict[str, str]) -> None:
    options = {"task": "toy:LetterTask", "segmenter": "fixed_tokens", "max_tokens": "9", "rollouts": "2"}
    config = resolve({**options, "engine": "markov:MarkovEngine", "model": "names.txt", "arms": "plain"})
    if not given:  # from Python
        config = replace(config, engine=Spec("engine", "markov:MarkovEngine").component_class()("names.txt"))
    first = Run(markov / "run", config).rollout()
    assert Run(markov / "run", resolve({}, Run(markov / "run").files.config())).rollout() == first


@pytest.mark.parametrize("family", DECODERS)
def test_each_architecture_takes_the_decoder_that_the_page_names(family: str, build: Any, word_tokenizer: Any) -> None:
    words, decoder = DECODERS[family]
    assert type(HFEngine(build(family), word_tokenizer).decoder()).__name__ == decoder
    [row] = [line for line in PAGE.split("\n") if f"| `{decoder}` |" in line]
    assert words in row


def test_shorter_types_take_the_library(build: Any, word_tokenizer: Any) -> None:
    from copy import deepcopy

    for family in ("llama", "qwen3"):
        engine = HFEngine(deepcopy(build(family)).bfloat16(), word_tokenizer)
        assert type(engine.decoder()).__name__ == LIBRARY


def test_the_page_names_every_setting_and_member() -> None:
    from dataclasses import fields

    from gpo.contracts import Engine

    for item in fields(HFEngine):
        assert item.name.startswith("_") or f"`{item.name}`" in PAGE
    for name in vars(Engine):
        assert name.startswith("_") or f"| `{name}` |" in PAGE
