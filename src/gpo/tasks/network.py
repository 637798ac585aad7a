"""Whether the Hugging Face hub answers: asked once, so that nobody waits for the retries of many downloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

SECONDS = 2.0


@cache
def answers(url: str) -> bool:
    """Whether a server sends any reply within `SECONDS`, through the proxies of the environment; asked once."""
    replies: list[bool] = []

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=SECONDS).close()
        except HTTPError:  # a reply all the same
            pass
        except (OSError, ValueError):
            return
        replies.append(True)

    # In a thread, because looking up a name has no time limit of its own.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return bool(replies)


@contextmanager
def hub() -> Iterator[str | None]:
    """Why the hub cannot be asked, None if it can; what is loaded inside comes from the local cache alone then."""
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
