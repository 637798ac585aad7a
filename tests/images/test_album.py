"""Images by name."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from tiny_eye import picture

from gpo.errors import DataError
from gpo.images import album
from gpo.images.album import Album
from gpo.storage import files

CELLS = "rgb/wrr/bbw"


def test_the_same_pixels_are_one_image_wherever_they_come_from(tmp_path: Path) -> None:
    pixels = picture(CELLS)
    for kind in ("png", "bmp"):
        pixels.save(tmp_path / f"a.{kind}")
    kept = Album(tmp_path / "images")
    names = {kept.add(pixels), kept.add(str(tmp_path / "a.png")), kept.add(tmp_path / "a.bmp"), Album().add(pixels)}
    assert len(names) == 1
    name = names.pop()
    assert [path.name for path in (tmp_path / "images").iterdir()] == [f"{name}.png"]
    assert kept.open(name).tobytes() == pixels.tobytes()
    assert kept.add(picture("rgb/wrr/bbr")) != name
    assert kept.add(pixels.resize((12, 48))) != name


def test_two_workers_may_keep_the_same_image_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, pixels, sync = tmp_path / "images", picture(CELLS), files._sync_all

    def meanwhile(path: Path) -> None:
        with monkeypatch.context() as other:
            other.setattr(files, "_sync_all", sync)
            other.setattr(os, "getpid", lambda: 1)
            Album(directory).add(pixels)
        sync(path)

    monkeypatch.setattr(files, "_sync_all", meanwhile)
    name = Album(directory).add(pixels)
    assert [path.name for path in directory.iterdir()] == [f"{name}.png"]
    assert Album(directory).open(name).tobytes() == pixels.tobytes()


def test_nothing_is_made_before_the_first_image(tmp_path: Path) -> None:
    Album(tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_alpha_goes_onto_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    kept = Album()
    assert kept.open(kept.add(clear)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_of_more_than_8_bits_are_not_taken_for_white(mode: str, tmp_path: Path) -> None:
    """Planted: Pillow makes all values above 255 white."""
    grey = Image.new(mode, (4, 4), 300)
    with pytest.raises(DataError, match=f"The image has pixels of mode {mode}. Save it with 8 bits"):
        Album().add(grey)
    grey.save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: The image has pixels of mode"):
        Album().add(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.png", "There is no image at nowhere.png"),
        ("https://example.org/a.png", "is no file. Save it and give its path"),
        (7, "Got int as an image; expected a path or a PIL image"),
    ],
)
def test_what_is_no_image_is_refused(given: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Album().add(given)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        Album().add(tmp_path / "a.png")
    kept = Album(tmp_path / "images")
    name = kept.add(picture(CELLS))
    other = io.BytesIO()
    picture("www/www/www").save(other, "PNG")
    (tmp_path / "images" / f"{name}.png").write_bytes(other.getvalue())
    with pytest.raises(DataError, match="is not what was kept under this name"):
        kept.open(name)
    (tmp_path / "images" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=f"There is no image {name}"):
        kept.open(name)


def test_two_images_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(album, "name_for", lambda pixels: "0" * 12)
    kept = Album()
    kept.add(picture(CELLS))
    kept.add(picture(CELLS))
    with pytest.raises(DataError, match="Two images have the name"):
        kept.add(picture("rrr/rrr/rrr"))
