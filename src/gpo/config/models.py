"""Which model a run means, resolved once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gpo.config.components import Spec
from gpo.config.presets import model_path
from gpo.config.run import RunConfig
from gpo.types import ModelRef


def resolve_model(config: RunConfig) -> ModelRef:
    """The model before training: that of the engine where it has one of its own, else the run's."""
    engine = config.engine
    if not isinstance(engine, Spec | str):
        ref = engine.model_ref
        in_memory = not isinstance(ref.source, str | Path) and ref.tokenizer is None
        return replace(ref, tokenizer=engine.tokenizer) if in_memory else ref
    settings = {} if isinstance(engine, str) else engine.settings
    source, tokenizer = settings.get("model") or config.model, settings.get("tokenizer")
    if not isinstance(source, str | Path):
        return ModelRef(source, f"<{type(source).__qualname__}>", tokenizer=tokenizer)
    # A tokenizer that is no path may be that of an engine without a language model.
    beside = tokenizer if isinstance(tokenizer, str | Path) else None
    return ModelRef(model_path(str(source)), str(source), tokenizer=beside)
