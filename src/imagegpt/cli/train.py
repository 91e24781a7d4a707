"""`imagegpt train`: train a model as a recipe says. The same command resumes a run that was stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagegpt.cli import _checks, _options, _rate_search, _training
from imagegpt.common import ranges, shell
from imagegpt.training.recipe_files import find_recipe

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from imagegpt.training.recipe import Recipe

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the recipe, as in training.batch_size=16. May be repeated."),
]
OutOption = Annotated[Path, _options.path_option("Folder for the model; a run in it is resumed.", show_default=False)]
MaxBrokenOption = Annotated[
    float | None,
    _options.number_option(
        ranges.BROKEN_FRACTION,
        "Fraction of the images that may be broken: they are skipped and listed. Short for --set data.max_broken=",
        show_default="the recipe's, or 0.05",
    ),
]
StartOverOption = Annotated[bool, typer.Option("--force", help="Start over if the folder holds a run.")]


def train(
    recipe: Annotated[str, _options.name_argument("Name of a recipe (digits, pictures ...) or a .yaml file.")],
    out: OutOption,
    overrides: SetOption = None,
    max_broken: MaxBrokenOption = None,
    device: _options.DeviceOption = None,
    force: StartOverOption = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Only search for the largest learning rate that does not hurt validation.")
    ] = False,
    find_lr_steps: Annotated[
        int | None,
        _options.number_option(ranges.STEPS, "Steps to try each rate for.", show_default="a tenth of the recipe's"),
    ] = None,
    as_json: _options.JsonOption = False,
) -> None:
    """Train a model, and report the likelihood of held-out images.

    A run that was stopped or killed is resumed from its last checkpoint by the same command. Launched by torchrun it
    trains on many processes. Broken images are skipped and listed in broken-images.txt; the exit code is then 1.
    """
    if find_lr_steps is not None and not find_lr:
        raise ValueError("--find-lr-steps was given without --find-lr: give both, or none")
    _checks.check_parent_folder(out)
    _checks.check_utf8(out)
    path, overrides = find_recipe(recipe), with_max_broken(overrides, max_broken)

    def choose() -> "Recipe":
        from imagegpt.training.recipe_io import read_recipe

        return read_recipe(path, overrides)

    def command(folder: str) -> str:
        words = (word for override in overrides for word in ("--set", override))
        return shell.shell_command("train", recipe, "--out", folder, *words)

    training = _training.TrainingCommand(
        choose=choose, out=out, command=command, device=device, force=force, as_json=as_json
    )
    if find_lr:
        _rate_search.find_rate(training, find_lr_steps)
    else:
        training.run()


def with_max_broken(overrides: list[str] | None, max_broken: float | None) -> list[str]:
    """Return the overrides of --set, and that of --max-broken if it was given."""
    return [*(overrides or ()), *([] if max_broken is None else [f"data.max_broken={max_broken}"])]
