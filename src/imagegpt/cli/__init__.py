"""The `imagegpt` command. One file per command, each of which parses options, calls the library and prints the result.

Modules that start with an underscore are shared by several commands.
"""

import os
from typing import NoReturn


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line, see `imagegpt.cli.app.main`; imported here so that Ctrl-C also works during imports."""
    try:
        from imagegpt.cli import app
    except KeyboardInterrupt:
        os.write(2, b"error: stopped\n")
        raise SystemExit(130) from None
    app.main(args)
