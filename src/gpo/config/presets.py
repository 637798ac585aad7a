"""What a run takes wherever nothing else was said: for the models that ship with the package, and for all others.

A million parameters take larger steps than the defaults (docs/lab-notes.md). Half a billion do not fit a laptop with
all weights in training, and write several sentences in a line. This is the one place that knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

EMBEDDED = "reasoner"  # the model of a run that names none
READER = "reader"  # the embedded one, trained on to go on from solutions that somebody else began
LONG = "long"  # the embedded one, trained to write questions of all sizes (gpo.reasoner.long)
SHIPPED = {EMBEDDED: "weights", READER: "reader", LONG: "long_weights"}  # models by name: folders in gpo.reasoner

_ONLINE = {"learning_rate": 3e-4, "minibatches": 4}
REASONER: Mapping[str, Mapping[str, Any]] = {  # settings of methods by name
    "dpo": {"learning_rate": 3e-4, "beta": 1.0, "epochs": 2},
    "kto": {"learning_rate": 1e-4},  # at 3e-4 some seeds break (docs/lab-notes.md)
    **{method: {"learning_rate": 3e-4} for method in ("simpo", "orpo")},
    **dict.fromkeys(("ppo", "grpo", "rloo"), _ONLINE),
}
_FITTING = {"lora": 16, "gradient_checkpointing": True}
_IN_PARTS = {**_FITTING, "batch_size": 2, "gradient_accumulation": 8}  # steps of 16 pairs, two of them in memory
OTHERS: Mapping[str, Mapping[str, Any]] = {  # settings of methods by name, for a model that does not ship with GPO
    **dict.fromkeys(("dpo", "simpo", "orpo"), _IN_PARTS),
    "kto": {**_FITTING, "batch_size": 4, "gradient_accumulation": 4},  # its reference point is of a batch
    **dict.fromkeys(("ppo", "grpo", "rloo"), _FITTING),
}
SEGMENTS: Mapping[str, Mapping[str, Any]] = {"newline": {"sentence_tokens": 30}}  # of segmenters by name, likewise
PIECE_SECONDS = 240.0  # of a run of another model; what is sampled with a shipped one is written in whole chunks

# Of a file of traces by its name: what the published BBH questions begin with and the rows of BIG-Bench-Mistake lack.
BEFORE_QUESTIONS = {
    "dyck_languages": "Complete the rest of the sequence, making sure that the parentheses are closed properly. Input: "
}


def located(model: str) -> str:
    """A directory that is named from here by its whole path, so that it is the same one from anywhere; else the name.

    That of a model which ships with the package comes before a directory.
    """
    with suppress(OSError):  # too long a name for one
        if isinstance(model, str) and model not in SHIPPED and Path(model).is_dir():
            return str(Path(model).resolve())
    return model


def model_path(model: str) -> str:
    """Where a model is: the directory of one that ships with the package for its name, else what was given."""
    return str(Path(__file__).parents[1] / "reasoner" / SHIPPED[model]) if model in SHIPPED else model


def with_task(options: Mapping[str, str]) -> dict[str, str]:
    """The options with the task of single questions, if none is named and the model is not one that ships with GPO.

    Those that do know their own questions only, and no instruction.
    """
    model = options.get("engine.model", options.get("model", EMBEDDED))
    return dict(options) if "task" in options or model in SHIPPED else {**options, "task": "question"}
