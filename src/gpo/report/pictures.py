"""The pictures of questions as a page has them: small, and in the page itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from gpo.errors import DataError
from gpo.images.album import Album
from gpo.images.tokens import images_in

LONGEST = 320  # pixels of a side
SHORTEST = 96  # a smaller picture is enlarged by a whole number, without smoothing
MOST = 4  # of one question
PNG_SIZE = 16_000  # bytes; a larger picture is a JPEG


class Picture(NamedTuple):
    """An image of a page."""

    name: str
    source: str  # data URI; empty where the file is not there or cannot be read
    width: int  # pixels
    height: int


def pictures_of(prompt_ids: Sequence[int], directory: Path) -> tuple[Picture, ...]:
    """Those of a prompt, `MOST` at most; `directory` has them by name."""
    return tuple(_picture(name, directory) for name in images_in(prompt_ids)[:MOST])


@lru_cache(maxsize=1024)
def _picture(name: str, directory: Path) -> Picture:
    from PIL.Image import Resampling

    try:
        image = Album(directory).open(name)
    except DataError:
        return Picture(name, "", 0, 0)
    times = max(1, SHORTEST // max(image.size))
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Resampling.NEAREST)
    image.thumbnail((LONGEST, LONGEST))
    data, kind = BytesIO(), "png"
    image.save(data, "PNG", optimize=True)
    if data.tell() > PNG_SIZE:
        data, kind = BytesIO(), "jpeg"
        image.save(data, "JPEG", quality=80)
    text = base64.b64encode(data.getvalue()).decode()
    return Picture(name, f"data:image/{kind};base64,{text}", *image.size)
