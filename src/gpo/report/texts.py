"""The steps of a run's trajectories as text, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from gpo.config.components import Spec
from gpo.config.options import resolve
from gpo.config.presets import model_path
from gpo.rollout.segmenters import pieces
from gpo.storage.directory import RunDirectory
from gpo.types import Trajectory


@dataclass(frozen=True)
class StepTexts:
    """Cuts responses of a run into the texts of their steps, with the tokenizer that the run sampled with."""

    files: RunDirectory

    @cached_property
    def tokenizer(self) -> Any:
        """Raises: ConfigError if this is no run directory, OSError if its model has no tokenizer any more."""
        config = resolve({}, self.files.config())
        engine = config.engine
        if isinstance(engine, Spec) and engine.name != "hf":
            return engine.make(model=model_path(config.model)).tokenizer
        from transformers import AutoTokenizer

        own = engine.settings.get("model") if isinstance(engine, Spec) else None
        return AutoTokenizer.from_pretrained(own or model_path(config.model))

    def __call__(self, trajectory: Trajectory) -> tuple[str, ...]:
        """(K,) the text of each step; joined they are the response, special tokens left out."""
        texts = pieces(trajectory.response_ids, self.tokenizer)
        return tuple("".join(texts[begin:end]) for begin, end in pairwise(trajectory.boundaries))


def text_lines(trajectory: Trajectory) -> list[str] | None:
    """The lines of a response from the question; None where they are not its steps."""
    lines = [line for line in trajectory.completion.text.split("\n") if line.strip()]
    return lines if len(lines) == len(trajectory.step_ends) else None
