"""Images by name: a name is a hash of the pixels, so that the same picture from two files is one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpo.errors import DataError
from gpo.images.tokens import DIGITS
from gpo.storage.files import make_folder, refuse_link, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

ADVICE = "Give a PNG, JPEG or other image file that Pillow reads, or a PIL image."


@dataclass
class Album:
    """Keeps images as `NAME.png` in a directory, which is made with the first; in memory where there is none."""

    directory: Path | None = None
    _kept: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)  # PNG by name, without a directory

    def add(self, image: object) -> str:
        """The name of an image, which is kept from now on: a path or an image of Pillow; alpha goes onto white.

        Raises:
            DataError: there is no such file, it is no image, or another image of the album has the same name.
        """
        pixels = _read(image)
        name = name_for(pixels)
        known = self._file(name)
        if known is None:
            target = BytesIO()
            pixels.save(target, "PNG")
            self._keep(name, target.getvalue())
        elif _decoded(known, name).tobytes() != pixels.tobytes():
            raise DataError(
                f"Two images have the name {name}: 48 bits of their hashes are equal. Change a pixel of one."
            )
        return name

    def png(self, name: str) -> bytes:
        """The file of an image.

        Raises:
            DataError: it is not there.
        """
        data = self._file(name)
        if data is None:
            where = "in memory" if self.directory is None else f"in {self.directory}"
            raise DataError(f"There is no image {name} {where}. Copy the run directory whole, its images included.")
        return data

    def _file(self, name: str) -> bytes | None:
        if self.directory is None:
            return self._kept.get(name)
        path = self._path(name)
        refuse_link(path)
        return path.read_bytes() if path.is_file() else None

    def open(self, name: str) -> Image:
        """The image, RGB.

        Raises:
            DataError: it is not there, or is not what was kept under this name.
        """
        return _decoded(self.png(name), name)

    def _path(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{name}.png"

    def _keep(self, name: str, data: bytes) -> None:
        if self.directory is None:
            self._kept[name] = data
            return
        make_folder(self.directory)
        with replacing(self._path(name), shared=True) as partial:  # workers of a run may ask the same question
            partial.write_bytes(data)


def name_for(pixels: Image) -> str:
    """By the size and the pixels of an RGB image."""
    said = f"{pixels.width}x{pixels.height}:".encode() + pixels.tobytes()
    return sha256(said).hexdigest()[:DIGITS]


def _read(image: object) -> Image:
    from PIL.Image import Image

    if isinstance(image, Image):
        return _rgb(image)
    if not isinstance(image, str | Path):
        raise DataError(f"Got {type(image).__name__} as an image; expected a path or a PIL image. {ADVICE}")
    if str(image).startswith(("http:", "https:", "data:")):
        raise DataError(f"The image {str(image)[:80]!r} is no file. Save it and give its path.")
    path = Path(image).expanduser()
    if not path.is_file():
        raise DataError(f"There is no image at {path}. {ADVICE}")
    return _opened(path, str(path))


def _decoded(data: bytes, name: str) -> Image:
    pixels = _opened(BytesIO(data), f"{name}.png")
    if name_for(pixels) != name:
        raise DataError(f"The image {name}.png is not what was kept under this name. Restore it, or sample again.")
    return pixels


def _opened(source: Any, where: str) -> Image:
    import PIL.Image

    try:
        with PIL.Image.open(source) as image:
            image.load()
            return _rgb(image)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be read as an image ({error}). {ADVICE}") from error


def _rgb(image: Image) -> Image:
    import PIL.Image
    import PIL.ImageOps

    if image.mode[0] in "IF":  # which Pillow cuts off at 255, so that nearly all is white, or black
        raise DataError(f"The image has pixels of mode {image.mode}. Save it with 8 bits for each colour.")
    upright = PIL.ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upright.size, "white"), upright)
    converted: Image = upright.convert("RGB")
    return converted
