"""An image among token ids: each of its placeholder tokens has an id of its own, made of the image and the place in it.

A model's processor puts n placeholder tokens where an image is, the same ones for all images. Here they are n ids above
every vocabulary: bit 62, 48 bits of the hash of the image's pixels, 14 bits of the place. So two images are two
sequences wherever token ids are compared, hashed, sorted or stored, and what a token is embedded as is a function of
its id, as it is for text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

FIRST = 1 << 62  # the least id of an image token
PLACES = 14  # bits
DIGITS = 12  # of the name of an image, hexadecimal: 48 bits


def image_tokens(name: str, count: int) -> tuple[int, ...]:
    """The ids (count,) of an image's tokens. `name` is `DIGITS` hexadecimal digits."""
    assert len(name) == DIGITS, name
    assert count <= 1 << PLACES, count
    first = FIRST | int(name, 16) << PLACES
    return tuple(range(first, first + count))


def name_of(token: int) -> str:
    """The name of the image that a token is of."""
    return f"{(token ^ FIRST) >> PLACES:0{DIGITS}x}"


def images_in(token_ids: Sequence[int]) -> tuple[str, ...]:
    """The names of the images, in order; one that is there twice is named twice."""
    if not has_images(token_ids):
        return ()
    first = [token for token in token_ids if token >= FIRST and token & ((1 << PLACES) - 1) == 0]
    return tuple(map(name_of, first))


def has_images(token_ids: Sequence[int]) -> bool:
    return bool(token_ids) and max(token_ids) >= FIRST


def spelled(token_ids: Iterable[int], placeholder: int) -> list[int]:
    """The ids for people to read: one placeholder for each image."""
    found: list[int] = []
    for image, run in groupby(token_ids, key=lambda token: token >= FIRST):
        if not image:
            found += run
        else:
            found += [placeholder for token in run if token & ((1 << PLACES) - 1) == 0]
    return found
