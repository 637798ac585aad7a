"""Which model an engine samples from, its tokenizer, and what is left of it once it is closed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gpo.config.components import made, make
from gpo.contracts import Engine
from gpo.engines.hf import HFEngine
from gpo.errors import EngineError
from gpo.toy import ChainEngine, random_process
from gpo.types import ModelRef, Request

REQUEST = Request((5, 9, 14), 2, 6, 0)


@pytest.fixture
def saved(build: Any, word_tokenizer: Any, tmp_path: Path) -> Path:
    """A folder with two models, the first with its tokenizer."""
    for family in ("qwen3", "llama"):
        build(family).save_pretrained(tmp_path / family)
    word_tokenizer.save_pretrained(tmp_path / "qwen3")
    word_tokenizer.save_pretrained(tmp_path / "words")
    return tmp_path


def words(count: int, eos: int = 1, special: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer of `count` words, and more special ones."""
    vocabulary = {f"w{index}": index for index in range(count)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")))
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<image{i}>" for i in range(special)]})
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    return tokenizer


def test_an_engine_says_which_model_it_samples_from(saved: Path, build: Any, word_tokenizer: Any) -> None:
    engine = HFEngine(saved / "qwen3", device="cpu")
    assert engine.model_ref == ModelRef(str(saved / "qwen3"), str(saved / "qwen3"))
    other = ModelRef(saved / "llama", "the other")
    engine.load(other)
    assert engine.model_ref is other
    in_memory = HFEngine(build("qwen3"), word_tokenizer)
    assert in_memory.model_ref.source is build("qwen3")
    assert in_memory.model_ref.name == "Qwen3ForCausalLM in memory"


def test_a_reference_is_taken_with_its_tokenizer(saved: Path, build: Any, word_tokenizer: Any) -> None:
    engine = HFEngine(ModelRef(saved / "llama", "llama", tokenizer=saved / "words"), device="cpu")
    assert engine.model_ref.name == "llama"
    assert engine.generate([REQUEST]) == HFEngine(build("llama"), word_tokenizer).generate([REQUEST])


def test_a_model_in_memory_is_loaded_as_it_is(saved: Path, build: Any, word_tokenizer: Any) -> None:
    engine = HFEngine(saved / "qwen3", device="cpu")
    engine.load(ModelRef(build("llama"), "llama"))
    assert engine.generate([REQUEST]) == HFEngine(build("llama"), word_tokenizer).generate([REQUEST])
    assert engine.decoder().model is build("llama")


def test_a_revision_is_that_of_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_checked(source: str, *, revision: str | None, **settings: Any) -> Any:
        asked.append((source, revision))
        raise EngineError("not reached")

    monkeypatch.setattr("gpo.engines.loading.load_checked", load_checked)
    with pytest.raises(EngineError, match="not reached"):
        HFEngine(ModelRef("somebody/model", "model", "v2", tokenizer=str(saved / "words")), device="cpu")
    assert asked == [("somebody/model", "v2")]


def test_the_tokenizer_may_be_a_directory(saved: Path) -> None:
    engine = make("engine", "hf", model=str(saved / "llama"), tokenizer=str(saved / "words"), device="cpu")
    assert engine.tokenizer.decode([5, 9]) == "w5 w9"
    assert engine.generate([REQUEST])
    with pytest.raises(EngineError, match="No tokenizer in"):
        HFEngine(saved / "llama", tokenizer=str(saved / "llama"))
    with pytest.raises(EngineError, match="There is no model at"):
        HFEngine(saved / "llama", tokenizer=str(saved / "no" / "where"))


def test_a_tokenizer_of_another_model_is_refused(saved: Path, build: Any) -> None:
    for model in (build("qwen3"), str(saved / "qwen3")):
        with pytest.raises(EngineError, match=r"token ids up to 39, but the model's embedding has 32 rows"):
            HFEngine(model, words(40), device="cpu")
    HFEngine(build("qwen3"), words(30))
    HFEngine(build("qwen3"), words(32, special=2))  # as Gemma 3 has one for images
    with pytest.raises(EngineError, match="token ids up to 33"):
        HFEngine(build("qwen3"), words(32, special=2, eos=33))


def test_a_checkpoint_that_is_not_whole_is_refused(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    engine = HFEngine(saved / "qwen3", device="cpu")
    file = saved / "llama" / "model.safetensors"
    state = load_file(file)
    save_file({n: t for n, t in state.items() if "up_proj" not in n}, file, metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"tensors 3 missing \(model.layers.0.mlp.up_proj.weight, "):
        engine.load(ModelRef(saved / "llama", "llama"))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(EngineError, match=str(file)):
        HFEngine(saved / "llama", tokenizer=str(saved / "words"), device="cpu")


def asked_of(engine: Engine) -> list[Callable[[], Any]]:
    return [
        lambda: engine.generate([]),
        lambda: engine.logprobs([], []),
        lambda: engine.load(engine.model_ref),
    ]


def test_a_closed_engine_answers_nothing_and_frees_what_it_loaded(saved: Path) -> None:
    engine = HFEngine(saved / "qwen3", device="cpu")
    engine.generate([REQUEST])
    weights = weakref.ref(engine.decoder().model)
    with engine as same:
        assert same is engine
    engine.close()
    gc.collect()
    assert weights() is None
    for ask in [*asked_of(engine), lambda: engine.context_length, lambda: engine.stop_ids, lambda: engine.model_ref]:
        with pytest.raises(EngineError, match="closed"):
            ask()


def test_a_closed_chain_answers_nothing() -> None:
    with ChainEngine() as engine:
        assert engine.generate([]) == []
    engine.close()
    for ask in asked_of(engine):
        with pytest.raises(EngineError, match="closed"):
            ask()


def test_closing_a_copy_leaves_the_engine_open(build: Any, word_tokenizer: Any) -> None:
    for engine in (HFEngine(deepcopy(build("qwen3")), word_tokenizer), ChainEngine()):
        other = made("engine", engine)
        other.close()
        assert engine.generate([]) == []
        copy(engine).close()
        assert engine.generate([]) == []


def test_processes_in_memory_are_loaded_and_damaged_files_named(tmp_path: Path) -> None:
    engine, processes = ChainEngine(), (random_process(7),)
    assert engine.model_ref.source == engine.processes
    ref = ModelRef(processes, "seven")
    engine.load(ref)
    assert engine.processes == processes
    assert engine.model_ref is ref
    for content in ("{", "[1]", "[{}]", '[{"probabilities": [[[2]]], "successors": [[[0]]], "right": [true]}]'):
        (tmp_path / "chain.json").write_text(content)
        with pytest.raises(EngineError, match=r"chain\.json holds no toy processes"):
            engine.load(ModelRef(tmp_path, "damaged"))
