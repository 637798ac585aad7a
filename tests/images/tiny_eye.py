"""Tiny random models of vision and language with their processors, and a task that they sometimes solve."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gpo.tasks.squares import Squares, draw
from gpo.types import Message, Problem, Score

EXAMPLE = Path(__file__).parents[2] / "examples" / "images.py"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def example() -> Any:
    """The module of the example, which makes a model of the architecture of SmolVLM."""
    spec = importlib.util.spec_from_file_location("image_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_eye(directory: Path) -> None:
    """An untrained model as in the example, with larger weights, so that images matter."""
    made = example()
    processor = made.processor(made.TASK.problems("train")[:50])
    model = made.untrained(processor)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def write_llava(directory: Path) -> None:
    made = example()
    tokenizer = made.processor(made.TASK.problems("train")[:50]).tokenizer
    size = {"height": 24, "width": 24}
    pictures = CLIPImageProcessorPil(size=size, crop_size=size)
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=made.TEMPLATE,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZES, image_size=24, patch_size=8),
        text_config=LlamaConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.2),
        image_token_index=processor.image_token_id,
        image_seq_length=9,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)


def asked(*cells: str, text: str = "How many red squares are in the picture?") -> list[Message]:
    """A question about pictures."""
    shown: list[dict[str, Any]] = [{"type": "image", "image": picture(each)} for each in cells]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def picture(cells: str) -> Image:
    return draw(cells, 8)


def native_logits(model: Any, processor: Any, cells: Sequence[str], behind: Sequence[int] = ()) -> torch.Tensor:
    """(T, V) as the library has them: of the prompt of `asked`, and of tokens behind it."""
    turns = [{"role": "user", "content": [*({"type": "image"} for _ in cells), asked()[0]["content"][0]]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    told = processor(text=[text], images=[[picture(each) for each in cells]], return_tensors="pt")
    told["input_ids"] = torch.cat([told["input_ids"], torch.tensor([list(behind)], dtype=torch.long)], 1)
    told["attention_mask"] = torch.ones_like(told["input_ids"])
    with torch.no_grad():
        logits: torch.Tensor = model(**told).logits[0].float()
    return logits


class Lenient(Squares):
    """A response is right if it has an even number of letters: what a random model writes is so half the time."""

    def score(self, problem: Problem, text: str) -> Score:
        right = sum(map(str.isalpha, text)) % 2 == 0
        return Score(float(right), "right" if right else "wrong", str(len(text)))
