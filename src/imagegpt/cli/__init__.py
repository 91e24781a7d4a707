"""The `imagegpt` command. One file a command, each thin: parse, call the library, print."""

import os
from typing import NoReturn


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line, see `imagegpt.cli.app.main`, which is imported here so that Ctrl-C may come meanwhile."""
    try:
        from imagegpt.cli import app
    except KeyboardInterrupt:
        os.write(2, b"error: stopped\n")
        raise SystemExit(130) from None
    app.main(args)
