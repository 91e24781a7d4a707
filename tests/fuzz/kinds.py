"""All kinds of input, in the order of the report."""

from collections.abc import Callable
from pathlib import Path

from .bundles import Bundles
from .cases import Kind
from .command_lines import CommandLines
from .encoded_folders import EncodedFolders
from .libraries import Libraries
from .model_folders import ModelFolders
from .pictures import Pictures
from .recipes import Recipes
from .runs import Runs
from .sources import Sources

_ALL = (Pictures, ModelFolders, EncodedFolders, Recipes, Bundles, CommandLines, Libraries, Sources, Runs)
KINDS: dict[str, Callable[[Path], Kind]] = {kind.name: kind for kind in _ALL}
