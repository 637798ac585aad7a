"""The pictures of questions as a page has them: small, and in the page itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from gpo.errors import DataError
from gpo.images.album import Album
from gpo.images.tokens import images_in

LONGEST = (320, 240, 160, 96, 64)  # pixels of a side: the first of which a picture fits into its room
SHORTEST = 96  # a smaller picture is enlarged by a whole number, without smoothing
MOST = 4  # of one question
PNG_SIZE = 16_000  # bytes; a larger picture is a JPEG
ALL = 1_500_000  # bytes of all pictures of a page, a third more in its text


class Picture(NamedTuple):
    """An image of a page."""

    name: str
    source: str  # data URI; empty where the file is not there or cannot be read
    width: int  # pixels
    height: int


def room_for(prompts: Iterable[Sequence[int]]) -> int:
    """Bytes of each picture of a page that shows the images of these prompts."""
    return ALL // max(1, sum(len(images_in(prompt)[:MOST]) for prompt in prompts))


def pictures_of(prompt_ids: Sequence[int], directory: Path, room: int = ALL) -> tuple[Picture, ...]:
    """Those of a prompt, `MOST` at most, each in about so many bytes; `directory` has them by name."""
    return tuple(_picture(name, directory, room) for name in images_in(prompt_ids)[:MOST])


@lru_cache(maxsize=1024)
def _picture(name: str, directory: Path, room: int) -> Picture:
    from PIL.Image import Resampling

    try:
        image = Album(directory).open(name)
    except DataError:
        return Picture(name, "", 0, 0)
    times = max(1, SHORTEST // max(image.size))
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Resampling.NEAREST)
    for longest in LONGEST:
        image.thumbnail((longest, longest))
        data, kind = BytesIO(), "png"
        image.save(data, "PNG", optimize=True)
        if data.tell() > min(PNG_SIZE, room):
            data, kind = BytesIO(), "jpeg"
            image.save(data, "JPEG", quality=75)
        if data.tell() <= room:
            break
    text = base64.b64encode(data.getvalue()).decode()
    return Picture(name, f"data:image/{kind};base64,{text}", *image.size)
