"""Which model a run means, resolved once."""

from __future__ import annotations

from dataclasses import replace

from gpo.config.components import Spec
from gpo.config.presets import model_path
from gpo.config.run import RunConfig
from gpo.types import ModelRef


def resolve_model(config: RunConfig) -> ModelRef:
    """The model before training: that of the engine where it has one of its own, else the run's."""
    engine = config.engine
    if isinstance(engine, Spec | str):
        settings = {} if isinstance(engine, str) else engine.settings
        name = settings.get("model") or config.model
        if not isinstance(name, str):
            return ModelRef(name, f"<{type(name).__qualname__}>", tokenizer=settings.get("tokenizer"))
        return ModelRef(model_path(name), name, tokenizer=settings.get("tokenizer"))
    ref = engine.model_ref
    return ref if isinstance(ref.source, str) or ref.tokenizer is not None else replace(ref, tokenizer=engine.tokenizer)
