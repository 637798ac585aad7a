"""What crashes leave of a directory, made from one undisturbed run, and disks that fail.

`recorded` notes the directory before every call that writes, syncs, renames, truncates or removes. A process that is
killed leaves one of these states, or one with a file half written. A machine that loses its power leaves less: what
was not synced is gone. Three file systems are played:

    strict    only the content of synced files, under names whose directory was synced
    renamed   every name as it is, over the content that was synced (metadata first)
    zeros     the same, and what was not synced of a file is there as zeros
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

CALLS = ("write", "fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "truncate", "ftruncate")
REMOVING = ("replace", "rename", "unlink", "remove", "rmdir")

Tree = dict[str, bytes | None]  # content by path, None for a folder


@dataclass
class File:
    synced: bytes = b""


@dataclass
class Folder:
    synced: dict[str, File | Folder] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A directory as a crash leaves it, before call number `call`."""

    call: int
    name: str  # of the call, and what it was about to work on
    tree: Tree

    def __str__(self) -> str:
        return f"{self.call} {self.name}"


class Recorder:
    """Notes what there is below a folder, and what of it would survive the loss of power."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = 0
        self.killed: list[State] = []
        self.powerless: dict[str, list[State]] = {"strict": [], "renamed": [], "zeros": []}
        self._top = Folder()
        self._nodes: dict[int, File | Folder] = {}
        self._numbers: dict[str, int] = {}  # by path
        self._seen: dict[tuple[str, ...], set[int]] = {}
        self._bytes: dict[bytes, bytes] = {}  # one object for equal contents
        self._last: Tree = {}
        self.tree()

    def note(self, call: str, what: str) -> None:
        """The directory is about to change."""
        tree, name = self.tree(), f"{call} {what}"
        for path, content in tree.items():
            before = self._last.get(path) or b""
            if content is not None and content != before:
                begin = len(before) if content.startswith(before) else 0
                half = content[: (begin + len(content)) // 2]
                self._keep(self.killed, "killed", f"half of {path}, before {name}", {**tree, path: half})
        self._last = tree
        self._keep(self.killed, "killed", name, tree)
        for model, states in self.powerless.items():
            self._keep(states, model, name, self._without_power(model, tree))
        self.calls += 1

    def tree(self) -> Tree:
        """What there is. The number of what was removed is given to another file."""
        found: Tree = {}
        nodes: dict[int, File | Folder] = {self.root.stat().st_ino: self._top}
        self._numbers = {}
        folders = [""]
        for folder in folders:  # more are found on the way
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    path, number = f"{folder}{entry.name}", entry.inode()
                    if entry.is_dir():
                        folders.append(f"{path}/")
                    found[path] = None if entry.is_dir() else self._content(entry.path)
                    nodes[number] = self._nodes.get(number) or (Folder() if entry.is_dir() else File())
                    self._numbers[path] = number
        self._nodes = nodes
        return dict(sorted(found.items(), key=lambda each: each[0].split("/")))

    def sync(self, descriptor: int) -> None:
        """What the descriptor is of survives the loss of power from now on: content, or names."""
        node = self._nodes.get(os.fstat(descriptor).st_ino)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if isinstance(node, File):
            node.synced = self._content(path)
        elif isinstance(node, Folder):
            node.synced = {each.name: self._nodes[each.stat().st_ino] for each in path.iterdir()}

    def moved(self) -> None:
        """What a call has moved or removed is no write, which a kill could leave half done."""
        self._last = self.tree()

    def _content(self, path: str | Path) -> bytes:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        return self._bytes.setdefault(content, content)

    def _keep(self, states: list[State], kind: str, name: str, tree: Tree) -> None:
        key = hash(tuple(sorted((path, hash(content)) for path, content in tree.items())))
        seen = self._seen.setdefault((kind,), set())
        if key not in seen:
            seen.add(key)
            states.append(State(self.calls, name, tree))

    def _without_power(self, model: str, tree: Tree) -> Tree:
        if model == "strict":
            return dict(_synced(self._top, ""))
        left: Tree = {}
        for path, content in tree.items():
            node = self._nodes[self._numbers[path]]
            if content is not None and isinstance(node, File):
                lost = max(0, len(content) - len(node.synced)) if model == "zeros" else 0
                left[path] = node.synced + bytes(lost)
            else:
                left[path] = None
        return left


def _synced(node: File | Folder, path: str) -> Iterator[tuple[str, bytes | None]]:
    if isinstance(node, File):
        yield path, node.synced
        return
    if path:
        yield path, None
    for name, child in node.synced.items():
        yield from _synced(child, f"{path}/{name}" if path else name)


Hook = Callable[[str, Path, Any], None]  # gets the name of a call, the path it is about, and its first argument


@contextmanager
def watched(root: Path, before: Hook, after: Hook | None = None) -> Iterator[None]:
    """Tell of every call that changes something below a folder; `before` may raise in its place."""

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(what: Any, *arguments: Any, **options: Any) -> Any:
            place = place_of(what, options.get("dir_fd"))
            if not place.is_relative_to(root):
                return call(what, *arguments, **options)
            before(name, place, what)
            given = call(what, *arguments, **options)
            if after is not None:
                after(name, place, what)
            return given

        return wrapped

    with pytest.MonkeyPatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, wrap(name, getattr(os, name)))
        yield


@contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """Record what the block does below a folder."""
    recorder = Recorder(root)

    def after(name: str, place: Path, what: Any) -> None:
        if name == "fsync":
            recorder.sync(what)
        if name in REMOVING:
            recorder.moved()

    with watched(root, lambda name, place, _: recorder.note(name, str(place.relative_to(root))), after):
        yield recorder
    recorder.note("end", "")


@contextmanager
def failing(root: Path, at: int, code: int) -> Iterator[list[str]]:
    """A disk that refuses call number `at` and all after it below a folder; what it refused is in the list.

    A full one still removes and cuts.
    """
    refused: list[str] = []
    calls = count()

    def before(name: str, place: Path, _: Any) -> None:
        if next(calls) >= at and (code != errno.ENOSPC or name in ("write", "fsync", "mkdir", "replace", "rename")):
            refused.append(f"{name} {place.relative_to(root)}")
            raise OSError(code, os.strerror(code), str(place))

    with watched(root, before):
        yield refused


@contextmanager
def disturbed(root: Path, at: int, disturb: Callable[[], None]) -> Iterator[None]:
    """Do something before call number `at` below a folder."""
    calls = count()

    def before(*_: Any) -> None:
        if next(calls) == at:
            disturb()

    with watched(root, before):
        yield


def place_of(what: Any, folder: int | None) -> Path:
    """The path that a call of `os` works on: given as a path, as a descriptor, or below one."""
    if isinstance(what, int):
        return Path(os.readlink(f"/proc/self/fd/{what}"))
    if folder is not None:
        return Path(os.readlink(f"/proc/self/fd/{folder}")) / os.fsdecode(what)
    return Path(os.fsdecode(what)).absolute()


def restore(tree: Tree, root: Path) -> None:
    """Make a folder hold exactly this."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
