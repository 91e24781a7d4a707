"""`imagegpt train`: from a recipe to a model in a folder. The same command goes on with what was stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagegpt.cli import _checks, _options, _rate_search, _training
from imagegpt.common import ranges, shell

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.training.recipe import Recipe

SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key, as in training.batch_size=16. May be repeated.")
]
OutOption = Annotated[Path, _options.path_option("The folder to make, or to go on in.", show_default=False)]
MaxBrokenOption = Annotated[
    float | None,
    _options.number(
        ranges.BROKEN_SHARE,
        "The share of images that may be broken: they are left out and listed. Short for --set data.max_broken=",
        show_default="the recipe's, or 0.05",
    ),
]
BeginAnewOption = Annotated[bool, typer.Option("--force", help="Begin anew where a run is already.")]


def train(
    recipe: Annotated[str, _options.name_argument("A recipe's name (digits, pictures ...) or .yaml file.")],
    out: OutOption,
    changes: SetOption = None,
    max_broken: MaxBrokenOption = None,
    device: _options.DeviceOption = None,
    force: BeginAnewOption = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Only look for the largest learning rate that does no harm.")
    ] = False,
    find_lr_steps: Annotated[
        int | None,
        _options.number(ranges.STEPS, "Steps a rate is tried for.", show_default="a tenth of the recipe's"),
    ] = None,
) -> None:
    """Train a model, and report the likelihood of held-out images.

    It may be killed: the same command goes on where the last checkpoint is. With torchrun it trains on many processes.
    Broken images are left out and listed in broken-images.txt; the exit code is 1 then.
    """
    from imagegpt.training.recipe_files import find_recipe

    if find_lr_steps is not None and not find_lr:
        raise ValueError("--find-lr-steps was given without --find-lr: give both, or none")
    _checks.check_parent(out)
    _checks.check_utf8(out)
    path, changes = find_recipe(recipe), with_max_broken(changes, max_broken)

    def choose() -> "Recipe":
        from imagegpt.training.recipe_io import read_recipe

        return read_recipe(path, changes)

    def command(folder: str) -> str:
        sets = (word for change in changes for word in ("--set", change))
        return shell.command("train", recipe, "--out", folder, *sets)

    if find_lr:
        _rate_search.find_rate(choose, out, command, num_steps=find_lr_steps, device=device, force=force)
        return
    _training.train_in_folder(choose, out, command, device=device, force=force)


def with_max_broken(changes: list[str] | None, max_broken: float | None) -> list[str]:
    """The changes of --set, and that of --max-broken if it was given."""
    return [*(changes or ()), *([] if max_broken is None else [f"data.max_broken={max_broken}"])]
