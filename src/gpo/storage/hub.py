"""Whether the model hub can be asked, found out once and soon: its client tries each of many files five times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from ssl import SSLError
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

SECONDS = 5.0  # to wait for a reply, through proxies too


@cache
def answers(url: str) -> bool:
    """Whether a server sends any reply within `SECONDS`, through the proxies of the environment; asked once."""
    replies: list[bool] = []

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=SECONDS).close()
        except HTTPError:  # a reply all the same
            pass
        except URLError as error:
            if not isinstance(error.reason, SSLError):  # whose certificates the hub's client knows better
                return
        except (OSError, ValueError):
            return
        replies.append(True)

    # In a thread, because looking up a name has no time limit of its own.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return bool(replies)


def hub_options(source: str) -> dict[str, Any]:
    """What to add to a `from_pretrained`: for a hub id, without a hub, only its cache is looked at."""
    from huggingface_hub import constants

    if Path(source).exists() or (not constants.HF_HUB_OFFLINE and answers(constants.ENDPOINT)):
        return {}
    return {"local_files_only": True}


@contextmanager
def data_hub() -> Iterator[str | None]:
    """Why the hub cannot be asked, None if it can; a data set that is loaded inside is from its cache alone then."""
    from datasets import config
    from huggingface_hub import constants

    if config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE:
        reason: str | None = "HF_HUB_OFFLINE is set"
    else:
        reason = None if answers(constants.ENDPOINT) else f"{constants.ENDPOINT} does not answer"
    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    try:
        if reason:
            config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
        yield reason
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
