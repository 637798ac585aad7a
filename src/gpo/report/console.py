"""The terminal that commands print to."""

from __future__ import annotations

import rich.console


class Console(rich.console.Console):
    """rich's, but for a reader that has gone, such as `head`: what that means is the command line's to say."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
