"""The terminal that commands print to."""

from __future__ import annotations

import rich.console


def say(console: rich.console.Console, text: str, *, whole: bool = False, style: str | None = None) -> None:
    """Print a text as it is; `whole` leaves long lines, such as paths, to the terminal to break."""
    console.print(text, style=style, highlight=False, soft_wrap=whole, markup=False)


class Console(rich.console.Console):
    """rich's, but for a reader that has gone, such as `head`: what that means is the command line's to say."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
