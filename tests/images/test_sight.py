"""A model that sees: sampling and log-probabilities are those of the library's own way to give it images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_eye import asked, native_logits, picture, write_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

from gpo.engines.contract import check_engine
from gpo.engines.hf import HFEngine
from gpo.errors import ConfigError, DataError, EngineError
from gpo.images import embedding
from gpo.images.tokenizer import ImageTokenizer
from gpo.images.tokens import FIRST, images_in
from gpo.rollout.prompting import render
from gpo.types import Request

ONE, OTHER = "rgb/wrr/bbw", "www/wgb/rrr"
BEHIND = (7, 3, 12, 9)


@pytest.fixture(scope="module")
def engine(eye: Path) -> HFEngine:
    return HFEngine(str(eye))


def expected(engine: HFEngine, cells: tuple[str, ...]) -> list[float]:
    logits = native_logits(engine._loaded, engine.tokenizer.processor, cells, BEHIND).log_softmax(-1)
    return [logits[i - len(BEHIND) - 1, token].item() for i, token in enumerate(BEHIND)]


def test_two_images_have_the_logprobs_that_the_library_gives_them(engine: HFEngine) -> None:
    several = [(ONE,), (OTHER,), (ONE, OTHER), (OTHER, ONE), (ONE, ONE)]
    prompts = [render(asked(*cells), engine.tokenizer) for cells in several]
    assert len({engine.tokenizer.decode(prompt) for prompt in prompts[:2]}) == 1
    assert len(set(prompts)) == len(several)
    found = engine.logprobs(prompts, [BEHIND] * len(several))
    for nats, cells in zip(found, several, strict=True):
        assert nats == pytest.approx(expected(engine, cells), abs=2e-5)
    assert max(abs(a - b) for a, b in zip(found[0], found[1], strict=True)) > 0.01
    assert max(abs(a - b) for a, b in zip(found[2], found[3], strict=True)) > 0.01


def test_greedy_sampling_is_the_librarys(engine: HFEngine) -> None:
    processor = engine.tokenizer.processor
    prompts = [render(asked(cells), engine.tokenizer) for cells in (ONE, OTHER)]
    answers = engine.generate([Request(prompt, 1, 12, 0) for prompt in prompts], temperature=0.0)
    for cells, [completion] in zip((ONE, OTHER), answers, strict=True):
        ids: tuple[int, ...] = ()
        while len(ids) < len(completion.token_ids):
            ids += (int(native_logits(engine._loaded, processor, (cells,), ids)[-1].argmax()),)
        assert completion.token_ids == ids


def test_an_engine_that_sees_keeps_the_contract(eye: Path) -> None:
    engine = HFEngine(str(eye))
    contexts = [render(asked(cells), engine.tokenizer) for cells in (ONE, OTHER)]
    text = tuple(engine.tokenizer.encode("How many red squares are in the picture?\n"))
    # One context goes on from another, one is text alone: image tokens are among what a longer request is followed by.
    check_engine(engine, [*contexts, (*contexts[0], 7, 3), text])


def test_images_of_several_shapes_and_a_bare_processor_do(eye: Path, engine: HFEngine) -> None:
    large = picture(ONE).resize((48, 48))
    messages: Any = [{"role": "user", "content": [{"type": "image", "image": large}, *asked(OTHER)[0]["content"]]}]
    own = HFEngine(engine._loaded, AutoProcessor.from_pretrained(eye))
    ids = [render(messages, each.tokenizer) for each in (own, engine)]
    assert ids[0] == ids[1]
    assert len(set(images_in(ids[0]))) == 2
    assert own.logprobs([ids[0]], [BEHIND]) == engine.logprobs([ids[0]], [BEHIND])


def test_an_image_in_tiles_is_seen_in_all_of_them(eye: Path) -> None:
    engine = HFEngine(str(eye))
    processor = engine.tokenizer.processor
    processor.image_processor.do_image_splitting = True
    processor.image_processor.size = {"longest_edge": 48}
    cells = ("rgb/wrr/bbw", "wwwwww/bwbwbw/rrrrrr")
    prompt = render(asked(*cells), engine.tokenizer)
    assert len([token for token in prompt if token >= FIRST]) > 4 * 9
    assert len(images_in(prompt)) == 2
    assert engine.logprobs([prompt], [BEHIND])[0] == pytest.approx(expected(engine, cells), abs=2e-5)


def test_llava_sees_too(tmp_path: Path) -> None:
    write_llava(tmp_path)
    engine = HFEngine(str(tmp_path))
    prompts = [render(asked(cells), engine.tokenizer) for cells in (ONE, OTHER)]
    for nats, cells in zip(engine.logprobs(prompts, [BEHIND] * 2), (ONE, OTHER), strict=True):
        assert nats == pytest.approx(expected(engine, (cells,)), abs=2e-5)


def test_a_model_that_does_more_with_images_is_refused(eye: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = HFEngine(str(eye))
    forward = engine._loaded.forward

    def in_two_dimensions(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if "pixel_values" in inputs:
            inputs["position_ids"] = torch.arange(input_ids.shape[1])[None] // 2
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(engine._loaded, "forward", in_two_dimensions)
    with pytest.raises(EngineError, match="does more with the tokens of an image than to embed them"):
        engine.generate([Request(render(asked(ONE), engine.tokenizer), 1, 4, 0)])


def test_new_weights_look_again(eye: Path, tmp_path: Path) -> None:
    engine = HFEngine(str(eye))
    prompt = render(asked(ONE), engine.tokenizer)
    before = engine.logprobs([prompt], [BEHIND])
    model = AutoModelForImageTextToText.from_pretrained(eye)
    with torch.no_grad():
        model.model.connector.modality_projection.proj.weight.mul_(-1.0)
    model.save_pretrained(tmp_path)
    engine.load(type(engine.model_ref)(str(tmp_path), "other"))
    after = engine.logprobs([prompt], [BEHIND])
    assert max(abs(a - b) for a, b in zip(before[0], after[0], strict=True)) > 0.01
    assert after[0] == pytest.approx(expected(engine, (ONE,)), abs=2e-5)


def test_what_an_image_becomes_is_computed_once(eye: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = HFEngine(str(eye))
    seen: list[int] = []
    look = engine._loaded.get_image_features
    monkeypatch.setattr(
        engine._loaded, "get_image_features", lambda **told: seen.append(len(told["pixel_values"])) or look(**told)
    )
    monkeypatch.setattr("gpo.engines.hf.check_sight", lambda *_: None)
    prompts = [render(asked(cells), engine.tokenizer) for cells in (ONE, OTHER)]
    for _ in range(2):
        engine.generate([Request(prompt, 3, 4, 0) for prompt in prompts])
    assert seen == [2]
    monkeypatch.setattr(embedding, "FEATURES", 1)
    engine.generate([Request(render(asked("rrr/rrr/rrr"), engine.tokenizer), 3, 4, 0)])
    assert not vars(engine._loaded.get_input_embeddings())["forward"].__self__.known


def test_a_model_of_text_alone_is_told(eye: Path, engine: HFEngine) -> None:
    with pytest.raises(ConfigError, match="The task asks about images, and the engine or its model takes none"):
        render(asked(ONE), engine.tokenizer.text)
    tokenizer: Any = engine.tokenizer
    with pytest.raises(DataError, match="Does the chat template show every image, and does no text hold '<image>'"):
        render(asked(ONE, text="What is <image> here?"), tokenizer)
    assert isinstance(tokenizer, ImageTokenizer)
    assert tokenizer.eos_token_id == tokenizer.text.eos_token_id
