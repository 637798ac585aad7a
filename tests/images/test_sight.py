"""A model that sees: sampling and log-probabilities are those of the library's own way to give it images."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_eye import asked, native_logits, picture, write_llava
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from gpo.engines.contract import check_engine
from gpo.engines.hf import HFEngine
from gpo.engines.templates import with_arguments
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


def test_positions_in_two_dimensions_are_refused_by_an_image_of_one_token_too() -> None:
    """Whose logits are the same, so that larger images would be sampled from wrongly. Planted: only logits compared."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 16}
    turns = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    special = {"bos_token_id": None, "eos_token_id": 1}
    config = Qwen2VLConfig(
        image_token_id=5,
        video_token_id=6,
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
        text_config={**sizes, **special, "num_key_value_heads": 2, "hidden_size": 32, "rope_parameters": turns},
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    ids = torch.tensor([[5]])
    told = {"input_ids": ids, "mm_token_type_ids": ids * 0 + 1, "image_grid_thw": torch.tensor([[1, 2, 2]])}
    told["pixel_values"] = torch.ones(4, 96)
    tokenizer: Any = SimpleNamespace(placeholder=5, count=lambda _: 1, inputs=lambda _: told)
    with pytest.raises(EngineError, match="Qwen2VLForConditionalGeneration does more with the tokens of an image"):
        embedding.check_sight(model, tokenizer, "a" * 12)
    assert model.model.rope_deltas is None


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


def test_arguments_reach_the_template_of_a_model_that_sees(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    brief = engine.tokenizer.chat_template + "{% if brief %}How{% endif %}"
    monkeypatch.setattr(engine.tokenizer.processor, "chat_template", brief)
    told = with_arguments(engine.tokenizer, {"brief": True})
    for turns in (asked(ONE), asked()):
        plain = render(turns, engine.tokenizer)
        assert render(turns, told)[: len(plain)] == plain
        assert told.decode(render(turns, told)[len(plain) :]) == "How"


def test_a_model_without_a_chat_template_does_not_lose_the_image(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (engine.tokenizer.processor, engine.tokenizer.text):
        monkeypatch.setattr(each, "chat_template", None)
    with pytest.raises(DataError, match="no chat template, which alone says where an image is in a prompt"):
        render(asked(ONE), engine.tokenizer)
    assert render(asked(), engine.tokenizer)


@pytest.mark.parametrize(
    "part", [{"type": "video", "video": "a.mp4"}, {"type": "image", "url": "a.png"}, {"text": "no type"}, "text"]
)
def test_other_parts_of_a_message_are_refused(engine: HFEngine, part: Any) -> None:
    message: Any = {"role": "user", "content": [part, {"type": "text", "text": "What is there?"}]}
    for tokenizer in (engine.tokenizer, engine.tokenizer.text):
        with pytest.raises(DataError, match=r"A message has the part .*expected \{'type': 'text', 'text': \.\.\.\}"):
            render([message], tokenizer)


def test_images_of_one_shape_that_become_different_numbers_of_tokens_keep_theirs() -> None:
    """As those of LLaVA-NeXT, whose tiles are cut to the image behind the vision part."""
    sizes = {"a" * 12: 3, "b" * 12: 5, "c" * 12: 3}

    class Padding:
        device = "cpu"
        get_input_embeddings = staticmethod(lambda: torch.nn.Embedding(4, 1))

        def get_image_features(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
            return [image[:size] for image, size in zip(pixel_values, image_sizes.tolist(), strict=True)]

    class Processed:
        count = staticmethod(sizes.__getitem__)

        def inputs(self, name: str) -> dict[str, torch.Tensor]:
            value = float(int(name, 16) % 1000)
            return {"pixel_values": torch.full((1, 8, 1), value), "image_sizes": torch.tensor([sizes[name]])}

    tokenizer: Any = Processed()
    found = embedding.ImageEmbedding(Padding(), tokenizer, keep=False).features(list(sizes))
    assert [len(each) for each in found] == [3, 5, 3]
    assert [each.unique().item() for each in found] == [int(name, 16) % 1000 for name in sizes]
