"""How a vision-language model of transformers takes image tokens: its embedding looks at the image.

The library's forward pass puts what the model's vision part makes of an image in place of the embeddings of its
placeholder tokens. Here the embedding does so by itself: an id of `tokens.py` says which image and which of its tokens.
All else, decoding with forked caches and trees of shared prefixes included, takes images as it takes text.

That is the same wherever the model treats image tokens as it treats text behind the embedding. Models that give them
positions in two dimensions (Qwen2-VL) or let them see ahead (Gemma 3, PaliGemma) do not, which `check_sight` finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpo.errors import EngineError
from gpo.images.tokenizer import ImageTokenizer
from gpo.images.tokens import DIGITS, FIRST, PLACES, image_tokens

FEATURES = 1 << 26  # numbers of image features that an engine keeps


class ImageEmbedding:
    """The forward pass of a model's input embedding that knows images; one deep copy of a model has its own."""

    def __init__(self, model: Any, tokenizer: ImageTokenizer, *, keep: bool) -> None:
        self.model, self.tokenizer, self.keep = model, tokenizer, keep
        self.embedding = model.get_input_embeddings()
        self.known: dict[str, Tensor] = {}

    def forward(self, ids: Tensor) -> Tensor:
        """(..., H) of ids (...); with gradient to the vision part where it is trained."""
        plain: Callable[[Any, Tensor], Tensor] = type(self.embedding).forward
        seen = ids >= FIRST
        if not bool(seen.any()):
            return plain(self.embedding, ids)
        out = plain(self.embedding, ids.masked_fill(seen, self.tokenizer.placeholder))
        tokens = ids[seen] ^ FIRST
        images, which = torch.unique(tokens >> PLACES, return_inverse=True)
        features = self.features([f"{image:0{DIGITS}x}" for image in images.tolist()])
        sizes = torch.tensor([len(each) for each in features], device=ids.device)
        places = tokens & ((1 << PLACES) - 1)
        if bool((places >= sizes[which]).any()):
            raise EngineError(
                "An image has more tokens than the model makes of it. Is the processor that of this model?"
            )
        rows = (sizes.cumsum(0) - sizes)[which] + places
        return out.masked_scatter(seen[..., None], torch.cat(features).to(out.dtype).index_select(0, rows))

    def features(self, names: Sequence[str]) -> list[Tensor]:
        """(n, H) of the tokens of each image; those of one shape and length go through the vision part together."""
        found = {name: self.known[name] for name in names if name in self.known}
        alike: dict[tuple[Any, ...], dict[str, dict[str, Tensor]]] = {}
        for name in names:
            if name not in found:
                about = {key: value for key, value in self.tokenizer.inputs(name).items() if key not in OF_TEXT}
                shapes = [(key, tuple(value.shape)) for key, value in about.items()]
                alike.setdefault((self.tokenizer.count(name), *shapes), {})[name] = about
        for some in alike.values():
            about = {key: torch.cat([each[key] for each in some.values()]) for key in next(iter(some.values()))}
            made = self.model.get_image_features(**{key: value.to(self.model.device) for key, value in about.items()})
            made = getattr(made, "pooler_output", made)
            made = torch.cat([*made]) if isinstance(made, list | tuple) else made
            found |= dict(zip(some, made.reshape(len(some), -1, made.shape[-1]), strict=True))
        if self.keep and not torch.is_grad_enabled():
            self.known |= found
            while sum(each.numel() for each in self.known.values()) > FEATURES:
                del self.known[next(iter(self.known))]
        return [found[name] for name in names]


OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def see(model: Any, tokenizer: Any, *, keep: bool = False) -> None:
    """Let a model take image tokens, if it can see and the tokenizer is one of images.

    Args:
        model: of transformers, without a wrapper of adapters.
        keep: what the model makes of an image, for one whose weights stay as they are.
    """
    if isinstance(tokenizer, ImageTokenizer) and hasattr(model, "get_image_features"):
        vars(model.get_input_embeddings())["forward"] = ImageEmbedding(model, tokenizer, keep=keep).forward


def sees(model: Any) -> bool:
    """Whether a model takes image tokens."""
    return "forward" in vars(model.get_input_embeddings())


@torch.no_grad()
def check_sight(model: Any, tokenizer: ImageTokenizer, name: str) -> None:
    """Compare the logits behind an image with those of the library's own way to see it.

    Raises:
        EngineError: they differ, so that the model does more with image tokens than to embed them.
    """
    if hasattr(model.base_model, "get_rope_index"):  # which would also keep what this image shifts, for later texts
        raise _does_more(model)
    told = {key: value.to(model.device) for key, value in tokenizer.inputs(name).items()}
    ids = told["input_ids"].clone()
    places = ids == tokenizer.placeholder
    ids[places] = torch.tensor(image_tokens(name, int(places.sum())), device=ids.device)
    try:
        expected = model(**told).logits.float()
    except TypeError:  # a model that is not told which tokens are of images
        told.pop("mm_token_type_ids", None)
        expected = model(**told).logits.float()
    found = model(input_ids=ids).logits.float()
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    if (found - expected).abs().max() > tolerance * (expected - expected.mean()).abs().max():
        raise _does_more(model)


def _does_more(model: Any) -> EngineError:
    return EngineError(
        f"{type(model).__name__} does more with the tokens of an image than to embed them (positions in two "
        "dimensions, or attention to what follows), and takes no images here. Expected a model such as SmolVLM "
        "(Idefics3) or LLaVA; see docs/images.md."
    )
