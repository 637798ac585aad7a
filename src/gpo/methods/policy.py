"""The trained model: load it, wrap it in adapters, check token ids against it, save it."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from gpo.errors import ConfigError, DataError, EngineError


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers, and without what peft warns of and does right itself."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


@quiet()
def load_policy(model: Any, tokenizer: Any = None, *, lora: int | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Model (float32 weights, no dropout) and tokenizer, ready to train.

    Args:
        model: a loaded causal language model, a hub id, or a directory of a model or of LoRA adapters.
        tokenizer: None loads the one beside the model.
        lora: rank of new LoRA adapters on all linear layers, with alpha twice the rank; None trains all weights.
            A model that has adapters already goes on with them.
        seed: of the adapters' first weights.

    Raises:
        EngineError: no model or tokenizer can be loaded from there.
        ConfigError: a loaded model without a tokenizer, or a rank below 1.
    """
    if lora is not None and lora < 1:
        raise ConfigError(f"lora is the rank of the adapters: expected at least 1 or None, got {lora}.")
    name = str(model) if isinstance(model, str | Path) else None
    if name is None and tokenizer is None:
        raise ConfigError("A loaded model needs its tokenizer: pass tokenizer=..., or a path instead of the model.")
    if name is not None:
        try:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(name)
            if (Path(name) / "adapter_config.json").is_file():
                model = AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True, dtype=torch.float32)
            else:
                model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise EngineError(f"No causal language model and tokenizer at {name!r}: {error}") from error
    if lora is not None and not isinstance(model, PeftModel):
        torch.manual_seed(seed)
        adapters = LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapters)
    without_dropout(model)
    return model, tokenizer


def without_dropout(model: torch.nn.Module) -> None:
    """Policy and reference shall differ in their weights only."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):  # a rate that the module hands to a function
                setattr(module, name, 0.0)


@quiet()
def save_policy(
    model: Any, tokenizer: Any, path: Path, *, merge: bool = False, state: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint directory that is there in whole or not at all.

    Args:
        merge: of a model with adapters, write whole weights instead of the adapters.
        state: of training, written beside the model as `training.pt`.
    """
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if merge and isinstance(model, PeftModel):
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if state is not None:
        torch.save(state, partial / "training.pt")
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def check_token_ids(model: Any, sequences: Iterable[Sequence[int]]) -> None:
    """Compare token ids with the model's vocabulary.

    Raises:
        DataError: a token id that the model has no embedding for.
    """
    size = model.get_input_embeddings().num_embeddings
    largest = max((max(ids) for ids in sequences if ids), default=0)
    if largest >= size:
        raise DataError(
            f"Token id {largest} is outside the model's vocabulary of {size} tokens. The data was made with another "
            f"tokenizer: sample it again with this model, or train the model it was sampled from."
        )


def context_length(model: Any) -> int | None:
    """Longest sequence in tokens that the model takes; None if its configuration does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def checksum(model: Any) -> str:
    """Sum and norm of each trainable weight: tells one state of training from another, cheaply."""
    rows = [(p.detach().double().sum().item(), p.detach().double().norm().item()) for p in model.parameters()]
    return repr(rows)
