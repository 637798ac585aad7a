from pathlib import Path

import pytest
from tiny_eye import write_eye


@pytest.fixture(scope="session")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random model that sees."""
    directory = tmp_path_factory.mktemp("eye") / "model"
    write_eye(directory)
    return directory
