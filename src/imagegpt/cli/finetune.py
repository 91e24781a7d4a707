"""`imagegpt finetune`: turn a pretrained model into a classifier, using labelled images."""

from typing import TYPE_CHECKING, Annotated

from imagegpt.cli import _checks, _options, _training
from imagegpt.cli.train import MaxBrokenOption, OutOption, SetOption, StartOverOption, with_max_broken
from imagegpt.common import ranges, shell
from imagegpt.training.recipe_files import find_recipe

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from imagegpt.training.recipe import Recipe


def finetune(
    model: Annotated[str, _options.name_argument("A bundled model, a folder, or owner/model.")],
    data: Annotated[
        str,
        _options.name_argument("digits, a folder that `imagegpt encode` wrote, or images in a folder for each class."),
    ],
    out: OutOption,
    recipe: Annotated[
        str | None,
        _options.name_option(
            "Name of a recipe or a .yaml file.", show_default="finetune-MODEL if there is one, or finetune"
        ),
    ] = None,
    lora: Annotated[
        int | None,
        _options.number_option(ranges.LORA_RANK, "Train adapters of this rank and the head, not the model's weights."),
    ] = None,
    overrides: SetOption = None,
    max_broken: MaxBrokenOption = None,
    device: _options.DeviceOption = None,
    force: StartOverOption = False,
    as_json: _options.JsonOption = False,
) -> None:
    """Turn a model into a classifier, and report its accuracy on held-out images and which classes it confuses.

    A run that was stopped or killed is resumed from its last checkpoint by the same command. Launched by torchrun it
    trains on many processes. Broken images are skipped and listed in broken-images.txt; the exit code is then 1.
    """
    _checks.check_model(model)
    _checks.check_source(data)
    _checks.check_parent_folder(out)
    _checks.check_utf8(out)
    if recipe is not None:
        find_recipe(recipe)
    overrides = with_max_broken(overrides, max_broken)
    given = [("--recipe", recipe), ("--lora", lora), *(("--set", override) for override in overrides)]
    options = [str(word) for pair in given if pair[1] is not None for word in pair]

    def choose() -> "Recipe":
        from imagegpt.training.api import finetuning_recipe

        return finetuning_recipe(model, data, recipe, overrides, lora_rank=lora)

    def command(folder: str) -> str:
        return shell.shell_command("finetune", model, data, "--out", folder, *options)

    _training.TrainingCommand(
        choose=choose, out=out, command=command, device=device, force=force, as_json=as_json
    ).run()
