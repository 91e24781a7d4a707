"""The `imagegpt` command. One file a command, each thin: parse, call the library, print."""

from imagegpt.cli.app import main

__all__ = ["main"]
