"""A small pretrained model, SmolLM2-135M-Instruct, and what tests ask of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.engines.hf import HFEngine


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the environment variable GPO_REAL_MODEL, else where `make real-model` puts the model."""
    cache = Path(os.environ.get("GPO_CACHE") or "~/.cache/gpo").expanduser()
    folder = Path(os.environ.get("GPO_REAL_MODEL") or cache / "models" / "smollm2")
    if not (folder / "config.json").is_file():
        pytest.skip(f"needs a real model in {folder}: make real-model, or name its folder with GPO_REAL_MODEL")
    return folder


@pytest.fixture(scope="session")
def engine(smollm2: Path) -> Iterator[HFEngine]:
    """In float32."""
    with HFEngine(str(smollm2)) as engine:
        yield engine


@pytest.fixture(scope="session")
def plain(engine: HFEngine) -> Any:
    """The model of transformers, whose forward pass and `generate` are the other opinion."""
    return engine._loaded


@pytest.fixture(autouse=True)
def one_core(one_thread: None) -> None:
    """What is sampled is the same on every machine of a kind."""
