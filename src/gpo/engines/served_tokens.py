"""What is known of a served model without its weights: tokenizer, vocabulary, ends and context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpo.engines.templates import with_arguments
from gpo.errors import EngineError
from gpo.storage.hub import hub_options
from gpo.storage.weights import first_line
from gpo.types import Completion, ModelRef

UNLIMITED = 1 << 30  # the context of models that state none


@dataclass(frozen=True)
class TokenFacts:
    """Of a model by its files."""

    tokenizer: Any
    base: str  # the model that adapters belong to, or the model itself
    vocabulary: int  # token ids that it takes
    context_length: int
    stop_ids: frozenset[int]

    def completion(self, ids: tuple[int, ...], nats: tuple[float, ...] | None) -> Completion:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(ids, text, "stop" if ids[-1] in self.stop_ids else "length", nats)


def facts_of(ref: ModelRef, tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> TokenFacts:
    """Read tokenizer and configurations of a directory (of a model or of LoRA adapters) or of a hub id.

    Args:
        arguments: what the chat template is given in every prompt.

    Raises:
        ConfigError: the template does not read one of the arguments.
        EngineError: the files are not there.
    """
    from transformers import AutoConfig, GenerationConfig

    from gpo.engines.loading import end_of_turn, load_tokenizer

    if not isinstance(ref.source, str | Path):
        raise EngineError(f"A server cannot serve {ref.name}, a model in memory. Give model= a directory or hub id.")
    source = str(ref.source)
    base = _base_of(source)
    given = tokenizer if tokenizer is not None else ref.tokenizer if ref.tokenizer is not None else source
    if isinstance(given, str | Path):
        given = load_tokenizer(str(given), ref.revision if str(given) == source else None)
    given = with_arguments(given, arguments)
    revision = ref.revision if base == source else None
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, **hub_options(base)).get_text_config(decoder=True)
        try:
            ends = GenerationConfig.from_pretrained(base, revision=revision, **hub_options(base)).eos_token_id
        except OSError:
            ends = config.eos_token_id
    except (OSError, ValueError) as error:
        raise EngineError(f"There is no configuration of a model in {base!r}: {first_line(error)}.") from error
    several: Sequence[int | None] = ends if isinstance(ends, list) else [ends]
    return TokenFacts(
        tokenizer=given,
        base=base,
        vocabulary=int(config.vocab_size),
        context_length=int(getattr(config, "max_position_embeddings", None) or UNLIMITED),
        stop_ids=frozenset(stop for stop in (*several, given.eos_token_id, end_of_turn(given)) if stop is not None),
    )


def _base_of(source: str) -> str:
    """What LoRA adapters in a directory are for; else the source itself."""
    file = Path(source) / "adapter_config.json"
    try:
        return str(json.loads(file.read_text())["base_model_name_or_path"]) if file.is_file() else source
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{file} does not say which model its adapters are for: {error}.") from error
