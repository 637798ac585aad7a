import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model of single letters."""
    sys.path.insert(0, str(HERE / "methods"))
    try:
        from tiny_policy import make_model, make_tokenizer
    finally:
        sys.path.pop(0)
    path = tmp_path_factory.mktemp("letters")
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path
