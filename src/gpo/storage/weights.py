"""Causal language models from a directory or the hub, with every tensor of them accounted for.

transformers and peft give random numbers to what a checkpoint lacks and leave out what they do not know. A model that
was loaded so samples nonsense; here it is refused. What a model declares as legitimately absent (a tied head) or left
over (`_keys_to_ignore_on_load_*`) is not counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpo.errors import EngineError
from gpo.storage.hub import hub_options

SHOWN = 3  # names in a message
# Parameters: a step of fewer is all launches on a GPU (1 M is slower there than on a core), and small in memory.
SMALL = 20_000_000


def load_checked(source: str, *, revision: str | None = None, trainable: bool = False, **settings: Any) -> Any:
    """A model, or a peft model around its base where `source` holds adapters; on the CPU.

    Args:
        source: directory of a model or of adapters, or hub id.
        revision: of a hub id.
        trainable: whether adapters can be trained further.
        settings: of `from_pretrained`, such as dtype.

    Raises:
        EngineError: there is no such model, a file is damaged, or tensors are missing, unknown or of another shape.
    """
    check_files(Path(source))
    try:
        hub = {"revision": revision, **hub_options(source)}
        adapters = adapters_at(source, hub)
        base = source
        if adapters is not None:
            base = adapters.base_model_name_or_path
            check_files(Path(base))
        of_base = hub if adapters is None else {"revision": adapters.revision, **hub_options(base)}
        model, report = _load_base(base, of_base, settings)
        reports = {base: report}
        if adapters is not None:
            model, reports[source] = _load_adapters(model, source, trainable, hub)
    except EngineError:
        raise
    except Exception as error:  # what a damaged or hostile file makes the libraries raise is not to be listed
        raise EngineError(
            f"No causal language model in {source!r} ({first_line(error)}). "
            "Expected a directory with config.json and weights, or a hub id that can be reached."
        ) from error
    for name, report in reports.items():
        check_report(report, name)
    return model


def check_files(directory: Path) -> None:
    """Open every safetensors file of a directory, whose header must agree with its length; nothing of a hub id.

    Raises:
        EngineError: one is truncated or damaged, or the weights are a pickle; the message names the file.
    """
    from safetensors import SafetensorError, safe_open

    if directory.is_file():
        raise EngineError(
            f"{str(directory)!r} is a file: expected the directory of a model of transformers, or a hub id. What an "
            "engine of your own samples from needs a method of its own to be trained."
        )
    found = sorted(directory.glob("*.safetensors"))
    if not found and (pickled := sorted(directory.glob("*_model*.bin"))):
        raise EngineError(
            f"{pickled[0]} is a pickle, which can hold code, and is not read. Save the model as safetensors: "
            "model.save_pretrained(DIRECTORY)."
        )
    for file in found:
        try:
            with safe_open(file, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise EngineError(
                f"{file} cannot be read ({first_line(error)}): it is truncated or damaged. Copy or save it again."
            ) from error


def check_report(report: Mapping[str, Collection[Any]], where: str) -> None:
    """Refuse what `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)` tells of a checkpoint.

    Args:
        report: `missing_keys`, `unexpected_keys`, and `mismatched_keys` as (name, shape found, shape expected).

    Raises:
        EngineError: there are any; the message has the first names and how many there are.
    """
    mismatched = [f"{name} {_shape(got)} for {_shape(wanted)}" for name, got, wanted in report["mismatched_keys"]]
    kinds = {"missing": report["missing_keys"], "unknown": report["unexpected_keys"], "of another shape": mismatched}
    faults = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    if faults:
        raise EngineError(
            f"The weights in {where!r} do not belong to the model that its configuration describes: "
            f"tensors {'; '.join(faults)}. Copy or save the checkpoint again, whole."
        )


def first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def adapters_at(source: str, hub: Mapping[str, Any]) -> Any:
    """The configuration of the adapters in a directory or of a hub id; None if there are none."""
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(source, **hub) is None:
        return None
    from peft import PeftConfig

    return PeftConfig.from_pretrained(source, **hub)


def _load_base(source: str, hub: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # so that all that is wrong is told at once
    safe = {"use_safetensors": True, "trust_remote_code": False}
    offline = {name: value for name, value in hub.items() if name == "local_files_only"}  # of its own look for adapters
    model, report = _class_for(source, hub).from_pretrained(
        source, adapter_kwargs=offline, **hub, **told, **safe, **settings
    )
    return model, report


def _class_for(source: str, hub: Mapping[str, Any]) -> Any:
    """That of causal language models; of models of vision and language where transformers has no other for a kind."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    kind = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub).model_type
    sees = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def _load_adapters(base: Any, source: str, trainable: bool, hub: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The base with adapters in it, and what is wrong with their tensors, as of transformers."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing tensors, which the report has too, and of peft's own calls
        found = {name: tensor.shape for name, tensor in load_peft_weights(source, "cpu", **hub).items()}
        model = PeftModel.from_pretrained(base, source, is_trainable=trainable, ignore_mismatched_sizes=True, **hub)
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    known = set(model.state_dict())  # weights of the base, an embedding say, may be saved beside the adapters
    return model, {
        "missing_keys": sorted(wanted.keys() - found.keys()),
        "unexpected_keys": sorted(found.keys() - wanted.keys() - known),
        "mismatched_keys": [
            (name, found[name], wanted[name].shape)
            for name in sorted(wanted.keys() & found.keys())
            if found[name] != wanted[name].shape
        ],
    }


def _first(names: Collection[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
