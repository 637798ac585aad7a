"""Tokenizers and models of transformers, loaded where the engine wants them and checked against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from gpo.engines.adapters import merge, without_wrapper
from gpo.engines.llama import LARGEST
from gpo.errors import EngineError
from gpo.images.album import Album
from gpo.images.tokenizer import ImageTokenizer, load_processor, text_tokenizer
from gpo.storage.hub import hub_options
from gpo.storage.weights import SMALL, first_line, load_checked


def load_tokenizer(source: str, revision: str | None = None, images: Album | None = None) -> Any:
    """A tokenizer, which takes images too where there are `images` and the model is one of vision and language.

    Raises:
        EngineError: there is none in a directory or behind a hub id.
    """
    from transformers import AutoTokenizer

    if not Path(source).exists() and (source.startswith(("/", ".", "~")) or source.count("/") > 1):
        raise EngineError(
            f"There is no model at {source!r}: expected a directory with a Hugging Face model, "
            "or a hub id such as Qwen/Qwen3-0.6B."
        )
    if inside := sorted(map(str, Path(source).glob("arms/*/model"))):
        raise EngineError(f"{source!r} is a run. Its models are {', '.join(inside[:5])}: name one of them.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False, **hub_options(source)
        )
        processor = None if images is None else load_processor(source, revision)
        if processor is not None:
            return ImageTokenizer(processor, images)
        # Without tokenizer files, transformers makes an empty one of the kind that the model's configuration names.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError("its vocabulary is empty")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and not Path(source).exists():
            raise EngineError(
                f"There is no directory {source!r}, and the hub gave no tokenizer of that id ({first_line(error)})."
            ) from error
        raise EngineError(
            f"No tokenizer in {source!r} ({first_line(error)}). Save one beside the model, or give --engine.tokenizer."
        ) from error
    return tokenizer


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that ends the model's turn in a conversation; None without a template or such a token.

    That of the template may be no end of sequence: base models of several families have the template of their chat
    models, whose turns end with a token of its own, and would write the user's next turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    said = "answer"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}]
    try:
        arguments = getattr(tokenizer, "chat_template_kwargs", None) or {}
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **arguments)
    except (TypeError, ValueError, TemplateError):
        return None
    behind: list[int] = []  # special tokens since the last other one; white space is none
    for token in reversed(ids):
        if token in tokenizer.all_special_ids or tokenizer.convert_ids_to_tokens(token) in tokenizer.get_added_vocab():
            behind.append(token)
        elif tokenizer.decode([token]).strip():
            break
    return behind[-1] if behind else None


def load_model(source: str, revision: str | None, *, device: str, dtype: str, attention: str | None) -> Any:
    """A model of transformers, adapters that can be merged merged into it.

    Raises:
        EngineError: there is none, its weights are not whole, or the device cannot be used.
    """
    settings: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    model, chosen = None, device
    if device == "auto":
        chosen = "cpu"
        if torch.cuda.is_available():
            model = load_checked(source, revision=revision, dtype=dtype, **settings)
            chosen = "cuda" if model.num_parameters() > SMALL else "cpu"
            model = None if chosen == "cpu" else model
    if dtype == "auto" and chosen == "cpu":
        if multiplies_bfloat16():
            model = load_checked(source, revision=revision, dtype="bfloat16", **settings)
        if model is None or model.num_parameters() <= LARGEST:
            model, dtype = None, "float32"
    if model is None:
        model = load_checked(source, revision=revision, dtype=dtype, **settings)
    try:
        model = model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise EngineError(f"Cannot use device {chosen!r} ({first_line(error)}). Use 'cpu', or 'auto'.") from error
    merge(model)
    return without_wrapper(model)


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16, so that they are faster than those of float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Compare a tokenizer of transformers with a model's embedding; other tokenizers state no vocabulary.

    Special tokens that are not the end of sequence may be beyond it: Gemma 3 has one for images that its text models
    do not know, and no text becomes it.

    Raises:
        EngineError: the model does not know some of the tokens.
    """
    from transformers import PreTrainedTokenizerBase

    size = vocabulary_of(model)
    tokenizer = text_tokenizer(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or len(tokenizer) <= size:
        return
    harmless = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    harmless.discard(tokenizer.eos_token_id)
    beyond = [index for index in tokenizer.get_vocab().values() if index >= size and index not in harmless]
    if beyond:
        raise EngineError(
            f"The tokenizer has token ids up to {max(beyond)}, but the model's embedding has {size} rows. "
            "Give the tokenizer that belongs to this model."
        )


def vocabulary_of(model: Any) -> int:
    """How many token ids a model takes."""
    return int(model.get_input_embeddings().num_embeddings)
