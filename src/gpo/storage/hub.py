"""Whether the model hub can be asked, found out once and soon: its client tries each of many files five times."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

SECONDS = 2.0  # to wait for a connection


def hub_options(source: str) -> dict[str, Any]:
    """What to add to a `from_pretrained`: for a hub id, without a connection, only its cache is looked at."""
    return {} if Path(source).exists() or is_reachable() else {"local_files_only": True}


def is_reachable() -> bool:
    """Whether the hub takes connections; a proxy is not tried."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), SECONDS):
            return True
    except OSError:
        return False
