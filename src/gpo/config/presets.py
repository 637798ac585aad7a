"""The models that ship with the package, and the settings that were found for them."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "reasoner"  # the model that ships with the package


SHIPPED = {EMBEDDED: "weights", "reader": "reader"}  # names of models and where they are in gpo.reasoner


def model_path(model: str) -> str:
    """Where a model is: the directory of one that ships with the package for its name, else what was given."""
    return str(Path(__file__).parents[1] / "reasoner" / SHIPPED[model]) if model in SHIPPED else model


# Of methods on the embedded reasoner, found on development questions (docs/lab-notes.md): a million parameters take
# larger steps than the defaults.
EMBEDDED_ONLINE = {"learning_rate": "3e-4", "minibatches": "4"}
EMBEDDED_SETTINGS = {
    "dpo": {"learning_rate": "3e-4", "beta": "1.0", "epochs": "2"},
    **{method: {"learning_rate": "3e-4"} for method in ("kto", "simpo", "orpo")},
    "ppo": EMBEDDED_ONLINE,
    "grpo": EMBEDDED_ONLINE,
    "rloo": EMBEDDED_ONLINE,
}
