"""The trained model: load it, wrap it in adapters, check token ids against it, save it."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from gpo import __version__
from gpo.errors import ConfigError, DataError, EngineError
from gpo.images.album import Album
from gpo.images.embedding import see, sees
from gpo.images.tokenizer import ImageTokenizer, load_processor
from gpo.images.tokens import FIRST
from gpo.methods.processes import gather, is_sharded, whole
from gpo.methods.scoring import without_adapters
from gpo.storage.files import replacing
from gpo.storage.weights import load_checked
from gpo.types import ModelRef, RoundContext

EXACT = "checkpoint_dtype"  # in the configuration of weights between rounds: the type that the last ones will have


class Policy(NamedTuple):
    """A model in training, and what it is saved with."""

    model: Any  # a causal language model of transformers, or a PeftModel around one
    tokenizer: Any
    dtype: torch.dtype  # of the checkpoint that it came from, and of the one that it will be


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
def load_policy(
    ref: ModelRef, *, own: bool = False, lora: int | None = None, seed: int = 0, images: Path | None = None
) -> Policy:
    """A model (float32 weights, no dropout) and its tokenizer, ready to train.

    Args:
        own: take a model in memory as it is and write to it; otherwise a copy is made.
        lora: rank of new LoRA adapters on all linear layers, with alpha twice the rank; None trains all weights.
            A model that has adapters already goes on with them.
        seed: of the adapters' first weights.
        images: directory of the images whose tokens are in prompts, for a model of vision and language.

    Raises:
        EngineError: no model or tokenizer can be loaded from there.
        ConfigError: a model in memory without a tokenizer.
    """
    if isinstance(ref.source, str | Path):
        model, tokenizer, dtype = _load(str(ref.source), ref)
    elif ref.tokenizer is None:
        raise ConfigError("A loaded model needs its tokenizer: pass tokenizer=..., or a path instead of the model.")
    else:
        model, tokenizer, dtype = ref.source, _tokenizer(ref.tokenizer), ref.source.dtype
        if not own:
            model = copy.deepcopy(model).float()
    if images is not None and images.is_dir():
        tokenizer = _with_images(tokenizer, ref, images)
        see(without_adapters(model), tokenizer)
    if lora is not None and not isinstance(model, PeftModel):
        torch.manual_seed(seed)
        adapters = LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapters)
    without_dropout(model)
    return Policy(model, tokenizer, dtype)


def _load(name: str, ref: ModelRef) -> tuple[Any, Any, torch.dtype]:
    model = load_checked(name, revision=ref.revision, trainable=True, dtype=torch.float32)
    extra = {} if ref.revision is None else {"revision": ref.revision}
    try:
        tokenizer = _tokenizer(name, **extra) if ref.tokenizer is None else _tokenizer(ref.tokenizer)
        base = model.peft_config["default"].base_model_name_or_path if isinstance(model, PeftModel) else name
        config = AutoConfig.from_pretrained(
            base, trust_remote_code=False, **({} if isinstance(model, PeftModel) else extra)
        )
    except (OSError, ValueError) as error:
        raise EngineError(f"No tokenizer and configuration at {name!r}: {error}") from error
    return model, tokenizer, _dtype(config)


def _with_images(tokenizer: Any, ref: ModelRef, images: Path) -> Any:
    """A tokenizer that takes images, where the model does; it keeps the ones that it has."""
    if isinstance(tokenizer, ImageTokenizer):
        return ImageTokenizer(tokenizer.processor, Album(images))
    if hasattr(tokenizer, "image_processor"):  # a processor
        return ImageTokenizer(tokenizer, Album(images))
    where = ref.tokenizer if isinstance(ref.tokenizer, str | Path) else ref.source
    processor = load_processor(str(where), ref.revision) if isinstance(where, str | Path) else None
    return tokenizer if processor is None else ImageTokenizer(processor, Album(images))


def _tokenizer(source: Any, **extra: str) -> Any:
    if not isinstance(source, str | Path):
        return source
    return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, **extra)


def _dtype(config: Any) -> torch.dtype:
    """Of a checkpoint's weights; float32 where its configuration does not say."""
    told = getattr(config, EXACT, None) or config.dtype or torch.float32
    dtype: torch.dtype = getattr(torch, told) if isinstance(told, str) else told
    return dtype


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
    policy: Policy,
    path: Path,
    *,
    write: bool = True,
    merge: bool = False,
    exact: bool = False,
    state: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write a checkpoint directory that is there in whole or not at all. The model in training stays as it is.

    Whole weights are cast to the type of the checkpoint that the model came from; adapters are written as they are.
    All processes that hold a part of the model call it together.

    Args:
        write: False in a process that only tells its part of the model.
        merge: of a model with adapters, write whole weights instead of the adapters.
        exact: write the weights as they are, for training that goes on; the configuration remembers the type.
        state: of training, written beside the model as `training.pt`.
        card: README.md of adapters, in place of the empty one of peft.

    Raises:
        EngineError: a weight that was trained is NaN or infinite.
    """
    model, tokenizer, dtype = policy
    _check_finite(model)
    weights = whole(model.state_dict(keep_vars=True), keep=write) if is_sharded(model) else None
    if not write:
        return
    if merge and isinstance(model, PeftModel):
        model, weights = _merged(model, weights), None
    with replacing(path) as partial:
        if isinstance(model, PeftModel) or model.dtype == dtype:
            model.save_pretrained(partial, state_dict=weights)
        else:
            model.save_pretrained(partial, state_dict=weights if exact else _cast(weights or model.state_dict(), dtype))
            config = copy.deepcopy(model.config)
            name = str(dtype).removeprefix("torch.")
            config.dtype = str(model.dtype).removeprefix("torch.") if exact else name
            vars(config).pop(EXACT, None)
            if exact:
                setattr(config, EXACT, name)
            config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if card is not None and isinstance(model, PeftModel):
            (partial / "README.md").write_text(card, encoding="utf-8")
        if state is not None:
            with (partial / "training.pt").open("wb") as file:  # which tells of a full disk
                torch.save(state, file)


def model_card(model: Any, method: str, context: RoundContext) -> str | None:
    """README.md of adapters: what they are for and how they were trained, with the header that hubs read."""
    if not isinstance(model, PeftModel):
        return None
    base = str(model.peft_config["default"].base_model_name_or_path)
    task = context.settings.get("task")
    told = {
        "Base model": f"`{base}`",
        "Method": method,
        "Arm": context.settings.get("arm"),
        "Task": f"`{task['name']}`" if isinstance(task, Mapping) else None,
        "Made by": f"gpo {__version__}",
    }
    header = ["---", f"base_model: {json.dumps(base)}", "library_name: peft", "tags: [gpo, lora]", "---"]
    lines = [f"- {name}: {value}" for name, value in told.items() if value]
    return "\n".join([*header, "", "# LoRA adapters", "", *lines, ""])


def _check_finite(model: Any) -> None:
    """Raises: EngineError, in all processes, if a weight that was trained is NaN or infinite."""
    trained = ((name, each.detach()) for name, each in model.named_parameters() if each.requires_grad)
    own = ((name, each.to_local() if isinstance(each, DTensor) else each) for name, each in trained)
    if wrong := gather([name for name, each in own if not each.isfinite().all()]):
        raise EngineError(
            f"Training ended with weights that are NaN or infinite, such as {wrong[0]}. The model is not kept; what "
            "was sampled is. Lower the learning rate, then give the same command again."
        )


def _merged(model: PeftModel, weights: Mapping[str, torch.Tensor] | None) -> Any:
    """A model with its adapters added to its weights; a sharded one with these whole weights is read again for that."""
    if weights is None:
        return copy.deepcopy(model).merge_and_unload()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, state_dict=dict(weights))
        return load_checked(directory, dtype=torch.float32).merge_and_unload()


def saved_state(source: Any) -> dict[str, Any]:
    """The state of training beside a model; empty where there is none."""
    path = Path(source) / "training.pt" if isinstance(source, str | Path) else None
    if path is None or not path.is_file():
        return {}
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def _cast(weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights that share their memory share it afterwards too, so that tied ones are written once."""
    made: dict[tuple[int, tuple[int, ...], tuple[int, ...]], torch.Tensor] = {}
    found = {}
    for name, weight in weights.items():
        place = (weight.data_ptr(), tuple(weight.shape), weight.stride())
        if place not in made:
            made[place] = weight.to(dtype) if weight.is_floating_point() else weight
        found[name] = made[place]
    return found


def check_token_ids(model: Any, sequences: Iterable[Sequence[int]]) -> None:
    """Compare token ids with the model's vocabulary.

    Raises:
        DataError: a token id that the model has no embedding for.
    """
    size = model.get_input_embeddings().num_embeddings
    largest, images = 0, False
    for ids in sequences:
        most = max(ids, default=0)
        if most >= FIRST:
            images, most = True, max((token for token in ids if token < FIRST), default=0)
        largest = max(largest, most)
    if images and not sees(without_adapters(model)):
        raise DataError(
            "The prompts have images, and the model in training takes none: expected a vision-language model with its "
            "processor, and `RoundContext.images`, the directory that has them."
        )
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
    weights = (whole(parameter).detach().double() for parameter in model.parameters())
    return repr([(each.sum().item(), each.norm().item()) for each in weights])
