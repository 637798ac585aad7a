"""Hidden states of a policy at the boundaries of trajectories, computed once each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpo.errors import ConfigError
from gpo.estimators.gradient import loaded
from gpo.types import StartKey, Trajectory

Floats = np.ndarray[Any, np.dtype[np.float32]]
Key = tuple[StartKey, tuple[int, ...], tuple[int, ...]]

KEPT = 1 << 27  # numbers that are kept between calls: half a gigabyte
PASS_TOKENS = 8192  # of one forward pass, padding included


class States:
    """The last hidden state at each boundary of each trajectory; those seen last are kept for the next call."""

    def __init__(self) -> None:
        self._source: Any = None
        self._model: Any = None
        self._kept: dict[Key, Floats] = {}

    def __call__(self, model: Any, trajectories: Sequence[Trajectory]) -> list[Floats]:
        """(K + 1, H) of each trajectory. Another model than that of the last call begins anew."""
        if model is not self._source:
            self._source, self._model, self._kept = model, loaded(model), {}
        keys = [(t.start.key, t.response_ids, t.step_ends) for t in trajectories]
        missing = {key: t for key, t in zip(keys, trajectories, strict=True) if key not in self._kept}
        if missing:
            self._kept |= zip(missing, computed(self._model, list(missing.values())), strict=True)
        found = [self._kept[key] for key in keys]
        size = sum(states.size for states in self._kept.values())
        while size > KEPT:
            size -= self._kept.pop(next(iter(self._kept))).size
        return found


def computed(model: Any, trajectories: Sequence[Trajectory]) -> list[Floats]:
    """(K + 1, H) of each trajectory: the last layer at the token before each boundary."""
    return [states[:, 0] for states in at_boundaries(model, trajectories)]


def at_boundaries(
    model: Any, trajectories: Sequence[Trajectory], layers: Sequence[int] = (-1,), *, mean: bool = False
) -> list[Floats]:
    """(K + 1, L, H) of each trajectory, several in one forward pass.

    Args:
        layers: 0 is the embedding, the last one is behind the final norm; negative ones count from the end.
        mean: over the tokens of the step before each boundary (of the question, the last token), in place of the last.

    Raises:
        ConfigError: the model has no such layer.
    """
    import torch

    found: dict[int, Floats] = {}
    training = model.training
    model.eval()
    last = tuple(layers) == (-1,)
    try:
        with torch.no_grad():
            for places in _passes([len(t.start.prompt_ids) + len(t.response_ids) for t in trajectories]):
                rows = [(*trajectories[i].start.prompt_ids, *trajectories[i].response_ids) for i in places]
                longest = max(map(len, rows))
                # Padded behind the end, which no token of a causal model looks at.
                ids = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], device=model.device)
                more = {} if last else {"output_hidden_states": True}
                output = model.get_decoder()(input_ids=ids, use_cache=False, **more)
                chosen = [output.last_hidden_state] if last else _layers(output.hidden_states, layers)
                for row, i in enumerate(places):
                    prompt = len(trajectories[i].start.prompt_ids)
                    ends = [prompt + boundary for boundary in trajectories[i].boundaries]
                    begins = [ends[0] - 1, *ends[:-1]] if mean else [end - 1 for end in ends]
                    found[i] = np.stack(
                        [
                            [layer[row, begin:end].float().mean(0).cpu().numpy() for layer in chosen]
                            for begin, end in zip(begins, ends, strict=True)
                        ]
                    )
    finally:
        model.train(training)
    return [found[i] for i in range(len(trajectories))]


def _layers(hidden: Sequence[Any], layers: Sequence[int]) -> list[Any]:
    """Raises: ConfigError if the model has no such layer."""
    for layer in layers:
        if not -len(hidden) <= layer < len(hidden):
            raise ConfigError(f"The model has layers 0 to {len(hidden) - 1} (0 is its embedding), got {layer}.")
    return [hidden[layer] for layer in layers]


def _passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The places of rows that go into one pass each, longest first: rows of about one length waste no padding."""
    places: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if places and lengths[places[0]] * (len(places) + 1) > PASS_TOKENS:
            yield places
            places = []
        places.append(place)
    if places:
        yield places
