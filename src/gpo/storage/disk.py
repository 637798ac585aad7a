"""What the system says of a disk, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpo.errors import DataError, DiskFull

FULL = "Nothing that was finished is lost. Make room, then give the same command again."
BROKEN = "The disk or the way to it fails. Once it works, give the same command again: what was finished is kept."
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
ADVICE = {
    **dict.fromkeys((*NO_ROOM, errno.EFBIG), FULL),
    errno.EROFS: "The file system is read-only. Choose another directory.",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Make it writable for this user, or choose another directory."),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR),
        "A file stands where a folder is needed. Move it away, or choose another directory.",
    ),
    errno.EISDIR: "A folder stands where a file is needed. Move it away, or choose another directory.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOENT: "Its folder was removed while it was written. Put it back, or start anew.",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT), BROKEN),
}


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what the system says of a full disk, or of a place where nothing can be written, into an error of ours.

    Raises:
        DataError: it names the file, what is the matter and what to do.
    """
    try:
        yield
    except Exception as raised:
        error = _of_system(raised)
        if error is None:
            raise
        place = str(path if error.filename is None else error.filename)
        named = place.startswith(str(path))
        # What is missing somewhere else is missed by whoever makes the content.
        if error.errno not in ADVICE or (error.errno == errno.ENOENT and not (named or path.is_relative_to(place))):
            raise
        other = "" if named else f" ({error.filename})"
        kind = DiskFull if error.errno in NO_ROOM else DataError
        raise kind(f"{path} cannot be written: {error.strerror}{other}. {ADVICE[error.errno]}") from raised


def _of_system(error: Exception) -> OSError | None:
    """What the system has said, which libraries in Rust, such as safetensors, have in a text; None where it has not."""
    if isinstance(error, OSError):
        return error
    if isinstance(error.__context__, OSError) and error.__context__.errno in NO_ROOM:  # below one of torch.save
        return error.__context__
    told = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    number = int(told[1]) if told else 0
    return OSError(number, os.strerror(number)) if number in NO_ROOM else None
