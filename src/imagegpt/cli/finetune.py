"""`imagegpt finetune`: from a model and labelled images to a classifier."""

import json
from typing import TYPE_CHECKING, Annotated, Any

from imagegpt.cli import _checks, _options, _training
from imagegpt.cli.train import BeginAnewOption, MaxBrokenOption, OutOption, SetOption, with_max_broken
from imagegpt.common import ranges, shell

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.training.recipe import Recipe


def finetune(
    model: Annotated[str, _options.name_argument("A bundled model, a folder, or owner/model.")],
    data: Annotated[
        str,
        _options.name_argument(
            "digits, a folder that `imagegpt encode` made, or a folder of images with a subfolder for each class."
        ),
    ],
    out: OutOption,
    recipe: Annotated[
        str | None,
        _options.name_option(
            "A recipe's name or .yaml file.", show_default="finetune-MODEL if there is one, or finetune"
        ),
    ] = None,
    lora: Annotated[
        int | None,
        _options.number(ranges.LORA_RANK, "Train adapters of this rank and the head, not the model's weights."),
    ] = None,
    changes: SetOption = None,
    max_broken: MaxBrokenOption = None,
    device: _options.DeviceOption = None,
    force: BeginAnewOption = False,
) -> None:
    """Make a classifier of a model, and report its accuracy on held-out images, with a picture of what it confuses.

    It may be killed: the same command goes on where the last checkpoint is. With torchrun it trains on many processes.
    Broken images are left out and listed in broken-images.txt; the exit code is 1 then.
    """
    from imagegpt.training.recipe_files import find_recipe

    _checks.check_model(model)
    _checks.check_source(data)
    _checks.check_parent(out)
    _checks.check_utf8(out)
    if recipe is not None:
        find_recipe(recipe)
    changes = with_max_broken(changes, max_broken)
    options = [] if recipe is None else ["--recipe", recipe]
    options += [] if lora is None else ["--lora", str(lora)]
    options += [word for change in changes for word in ("--set", change)]

    def choose() -> "Recipe":
        asked = [] if lora is None else [f"model.lora_rank={lora}"]
        return classifier_recipe(model, data, recipe, [*asked, *changes])

    def command(folder: str) -> str:
        return shell.command("finetune", model, data, "--out", folder, *options)

    _training.train_in_folder(choose, out, command, device=device, force=force)


def classifier_recipe(model: str, data: str, recipe: str | None, changes: list[str]) -> "Recipe":
    """The recipe for a classifier; pictures that are not encoded get the model's own palette and size.

    Images are split as those were that the model was trained with. Of a bidirectional model it is a bidirectional
    classifier.

    Raises: ValueError or OSError, in one sentence, if there is no such recipe or model, or the changes cannot be made.
    """
    from imagegpt.checkpoints.loading import find_folder, load_config, load_processor
    from imagegpt.data.identity import DataRecord
    from imagegpt.training.recipe_files import find_recipe, known_recipes
    from imagegpt.training.recipe_io import read_recipe
    from imagegpt.training.source_images import DIGITS, holds_ids

    own = f"finetune-{model}"
    name = recipe or (own if own in known_recipes() else "finetune")
    folder = find_folder(model)
    config = load_config(folder)
    given: dict[str, Any] = {"model.pretrained": model, "data.train": data}
    if not holds_ids(data):
        processor = load_processor(folder, config)
        given |= {"data.palette": model, "data.side": processor.size["height"]}
    record = DataRecord.read(folder)
    if record is not None and data != DIGITS:  # so that what is held out was held out when the model was made, too
        given["data.split"] = dict(record.split)
    chosen = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    found = find_recipe(name)
    if not config.is_causal and read_recipe(found, chosen).objective.name == "joint":
        chosen.append("objective.name=joint-bert")
    return read_recipe(found, [*chosen, *changes])
