"""The steps of a run's trajectories as text, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from gpo.config.components import setting_types
from gpo.config.options import spec_from_options
from gpo.config.presets import model_path
from gpo.config.registry import ENGINES
from gpo.errors import DataError
from gpo.rollout.segmenters import pieces
from gpo.rollout.thought import visible
from gpo.storage.directory import RunDirectory, model_name
from gpo.types import Trajectory


@dataclass(frozen=True)
class StepTexts:
    """Cuts responses of a run into the texts of their steps, with the tokenizer that the run sampled with."""

    files: RunDirectory

    @cached_property
    def tokenizer(self) -> Any:
        """That of the run's model, if it is on this machine: the hub is not asked, and no code that a run names is run.

        Raises:
            ConfigError: this is no run directory.
            DataError: the tokenizer is not here.
        """
        config = self.files.config()
        engine = config.get("engine")
        engine = engine if isinstance(engine, Mapping) else {"name": engine or "hf"}
        inner, own = engine.get("inner"), engine.get("tokenizer")
        if isinstance(inner, Mapping):
            engine = inner if own is None else {**inner, "tokenizer": own}
        if engine["name"] != "hf" and engine["name"] in ENGINES:
            spec = spec_from_options("engine", "engine", engine, {})
            if "model" not in setting_types(spec.component_class()):
                return spec.make().tokenizer
        from transformers import AutoTokenizer

        own = engine.get("tokenizer")
        name = own if isinstance(own, str) and own else model_path(model_name(config))
        try:
            return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            raise DataError(
                f"{self.files.path}: the tokenizer of {str(name)!r}, which cuts responses into steps, is not on this "
                "machine. Put the model where it was when the run sampled, or into the cache of the hub."
            ) from error

    def __call__(self, trajectory: Trajectory) -> tuple[str, ...]:
        """(K,) the text of each step; joined they are the response, special tokens left out."""
        texts = pieces(trajectory.response_ids, self.tokenizer)
        return tuple("".join(texts[begin:end]) for begin, end in pairwise(trajectory.boundaries))


def text_lines(trajectory: Trajectory) -> list[str] | None:
    """The lines of a response from the question; None where they are not its steps."""
    lines: list[str] = []
    mark = ""
    for line in trajectory.completion.text.split("\n"):
        if visible(line):
            lines.append(mark + line)
            mark = ""
        elif line.strip():
            mark = f"{line}\n"
    return lines if len(lines) == len(trajectory.step_ends) else None
