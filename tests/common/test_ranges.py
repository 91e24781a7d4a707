"""Every number a user can give has a range: options of commands, fields of recipes, parameters of public functions.

All of them are enumerated, so that a new number without a range fails here, and tested in the same way.
"""

import inspect
import math
import re
import typing
from collections.abc import Callable

import numpy as np
import pytest
import torch
import typer
from numpy.typing import ArrayLike, DTypeLike
from PIL import Image
from pydantic import TypeAdapter

from helpers import tiny_model
from imagegpt import ColorPalette, ImageGPTConfig, ImageGPTImageProcessor, ImageGPTPipeline
from imagegpt.benchmarking import BenchmarkOptions
from imagegpt.checkpoints.tensor_bundle import write_bundle
from imagegpt.cli import main
from imagegpt.cli._options import NumberParser
from imagegpt.cli.app import app
from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.data.palettes import fit_palette
from imagegpt.data.sources.registry import open_images
from imagegpt.evaluation.likelihood import mean_nll, pixel_nll
from imagegpt.images.processor_options import ImageGPTImageProcessorKwargs, ProcessingOptions
from imagegpt.jobs.encode import encode
from imagegpt.jobs.ranks import Ranks
from imagegpt.jobs.sample import sample_many
from imagegpt.sampling import FillSchedule, Sampler, SamplingRules, fill, image_seed
from imagegpt.training.objectives import OBJECTIVES
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_io import parse_recipe

DECLARED = {name: value for name, value in vars(ranges).items() if isinstance(value, ranges.Range)}


def numbers_in(hint):
    """The kinds of number a type lets through, Annotated ones with what is said of them: (kind, metadata)."""
    if typing.get_origin(hint) is typing.Annotated:
        kind, *metadata = typing.get_args(hint)
        return [(one, [*more, *metadata]) for one, more in numbers_in(kind)]
    if hint in (int, float, np.integer):
        return [(hint, [])]
    if typing.get_origin(hint) in (Callable, typing.get_origin(Callable[[], int]), typing.Literal):
        return []
    parts = typing.get_args(hint)
    for alias in (ArrayLike, DTypeLike):  # numpy 2.0 spells them as unions that name int and float
        members = typing.get_args(alias)
        if set(members) <= set(parts):
            parts = [part for part in parts if part not in members]
    return [one for part in parts for one in numbers_in(part)]


def outside(allowed):
    """Numbers that a range does not hold, just outside and far."""
    if isinstance(allowed, ranges.IntRange):
        near = [allowed.min - 1, allowed.max + 1, allowed.min + 0.5]
    else:
        near = [
            allowed.min if allowed.min_open else math.nextafter(allowed.min, -math.inf),
            allowed.max if allowed.max_open else math.nextafter(allowed.max, math.inf),
        ]
    far = [one for one in (2**63, 10**20, -1) if not allowed.min <= one <= allowed.max]
    return [*near, *far, math.nan, math.inf, -math.inf, 1e39]


def sentence(name, allowed):
    return re.compile(rf"{re.escape(name)} is [^:]+: it must be {re.escape(str(allowed))}\Z")


# --- The ranges themselves ---


@pytest.mark.parametrize("name", DECLARED)
def test_a_range_accepts_its_bounds_from_any_library_and_nothing_beyond(name):
    allowed = DECLARED[name]
    for bound in (allowed.min, allowed.max):
        if isinstance(allowed, ranges.IntRange):
            several = [bound, str(bound)] + ([np.int64(bound), torch.tensor(bound)] if bound < 2**63 else [])
        else:
            is_out = allowed.min_open if bound == allowed.min else allowed.max_open
            inside = math.nextafter(bound, 0.5) if is_out else float(bound)
            several = [inside, np.float64(inside), str(inside)]
        for value in several:
            checked = allowed.parse(value) if isinstance(value, str) else allowed.check("it", value)
            assert type(checked) is allowed.kind
            assert checked == (float(value) if allowed.kind is float else int(value))
    for value in [*outside(allowed), True, False, np.True_, torch.tensor(True), None, "1", [1], 10**5000]:
        with pytest.raises(ValueError, match=r"^it is .{1,80}: it must be an? (integer|number) "):
            allowed.check("it", value)
    for text in ["", "one", "nan", "inf", "1e999", "0x1", *map(repr, outside(allowed))]:
        with pytest.raises(ValueError, match=f"^{re.escape(text)} is not {re.escape(str(allowed))}"):
            allowed.parse(text)


def test_check_optional_passes_none():
    assert ranges.BATCH_SIZE.check_optional("it", None) is None
    assert ranges.BATCH_SIZE.check_optional("it", np.int32(4)) == 4


# --- The command line ---

LISTS = {("bench", "--batch"): ranges.BATCH_SIZE}  # numbers with commas between them
NEEDED = {
    "complete": ["cat.png"], "fill": ["cat.png", "--mask", "mask.png"], "encode": ["src", "out", "--palette", "digits"],
    "finetune": ["digits", "digits", "--out", "out"], "train": ["digits", "--out", "out", "--find-lr"],
    "palette fit": ["src", "--out", "out"], "export openai": ["digits", "prefix"], "download": ["s", "--out", "out"],
}  # fmt: skip


def options():
    """All options and arguments of all commands: the command, how it is written, its type as annotated."""

    def walk(group, words):
        for command in group.registered_commands:
            name = " ".join([*words, command.name or command.callback.__name__])
            parsed = typer.main.get_command(app)
            for word in name.split():
                parsed = parsed.commands[word]
            hints = typing.get_type_hints(command.callback, include_extras=True)
            for parameter in parsed.params:
                if parameter.name in hints:  # the others are typer's own
                    yield name, parameter.opts[0], hints[parameter.name]
        for more in group.registered_groups:
            yield from walk(more.typer_instance, [*words, more.name])

    return list(walk(app, []))


def range_of(hint):
    """The range by which an option is read; None if it has none."""
    found = [one for one in hint.__metadata__ if isinstance(one, typer.models.ParameterInfo)]
    parser = found[-1].parser
    return parser.range if isinstance(parser, NumberParser) else None


NUMERIC_OPTIONS = [(command, option, hint) for command, option, hint in options() if numbers_in(hint)]


def test_every_number_on_the_command_line_has_a_range():
    assert len({command for command, _, _ in options()}) >= 15, "the commands were not found"
    assert len(NUMERIC_OPTIONS) >= 40
    without = [(command, option) for command, option, hint in NUMERIC_OPTIONS if range_of(hint) is None]
    assert without == []
    assert {(command, option) for command, option, _ in options()} >= set(LISTS)


@pytest.mark.parametrize(
    ("command", "option", "allowed"),
    [(command, option, range_of(hint)) for command, option, hint in NUMERIC_OPTIONS]
    + [(command, option, allowed) for (command, option), allowed in LISTS.items()],
)
def test_an_option_outside_its_range_is_one_sentence(command, option, allowed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in [*map(repr, outside(allowed)), "many", "1e9", "True"]:
        if value == "1e9" and isinstance(allowed, ranges.FloatRange) and allowed.max >= 1e9:
            continue
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), *NEEDED.get(command, []), f"{option}={value}"])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert option in err
        assert f"{value} is not {allowed}" in err
    assert list(tmp_path.iterdir()) == []


# --- Recipes ---

OBJECTIVE_CLASSES = [OBJECTIVES.get(name) for name in OBJECTIVES.names()]
SECTIONS = [item for item in typing.get_type_hints(Recipe).items() if item[0] != "objective"]
FIELDS = [
    (section, kind, name, hint)
    for section, kind in [*SECTIONS, *(("objective", kind) for kind in OBJECTIVE_CLASSES)]
    for name, hint in typing.get_type_hints(kind, include_extras=True).items()
    if numbers_in(hint)
]


def ranges_of_field(hint):
    return [[one.range for one in metadata if isinstance(one, InRange)] for _, metadata in numbers_in(hint)]


def test_every_number_in_a_recipe_has_a_range():
    assert len(FIELDS) >= 30
    assert [(section, name) for section, _, name, hint in FIELDS if [] in ranges_of_field(hint)] == []


@pytest.mark.parametrize(
    ("section", "kind", "name", "hint"), FIELDS, ids=[f"{kind.__name__}.{name}" for _, kind, name, _ in FIELDS]
)
def test_a_field_outside_its_range_is_refused_by_name(section, kind, name, hint):
    ((allowed,),) = ranges_of_field(hint)
    for value in [*outside(allowed), True, "many"]:
        recipe = {"model": {"size": "small"}, "data": {"train": "digits"}, "training": {"num_steps": 200}}
        recipe[section] = {**recipe.get(section, {}), name: value}
        if section == "objective":
            recipe[section]["name"] = kind.name
        with pytest.raises(ValueError, match=sentence(f"{section}.{name}", allowed)):
            parse_recipe(recipe)
    inside = np.int64(allowed.min) if allowed.kind is int else np.float32((allowed.min + allowed.max) / 2)
    read = TypeAdapter(hint).validate_python(inside)
    assert type(read) is allowed.kind
    assert read == inside


# --- Python ---


@pytest.fixture(scope="module")
def pipe():
    return ImageGPTPipeline(tiny_model(), ImageGPTImageProcessor(ColorPalette.grey(16), size=4))


@pytest.fixture(scope="module")
def bert():
    return ImageGPTPipeline(tiny_model(is_causal=False), ImageGPTImageProcessor(ColorPalette.grey(16), size=4))


PICTURE = Image.linear_gradient("L")
MASK = np.tri(4, dtype=bool)
IDS = torch.zeros(1, 16, dtype=torch.int64)
RULES = {
    "temperature": ranges.TEMPERATURE, "top_k": ranges.TOP_K, "top_p": ranges.TOP_P, "min_p": ranges.MIN_P,
}  # fmt: skip
DRAWING = {"num": ranges.NUM_IMAGES, "seed": ranges.SEED, "batch_size": ranges.BATCH_SIZE, **RULES}


def of_pipe(method, *given, **fixed):
    """A method of the pipeline, with what it needs beside the number that is tried."""
    return lambda made, **number: getattr(made["pipe"], method)(*given, **{**fixed, **number})


# For each public callable: its parameters' ranges, and how it is called with one of them.
DOORS = {
    ImageGPTPipeline.sample: (DRAWING, of_pipe("sample")),
    ImageGPTPipeline.complete: (
        {**DRAWING, "keep": ranges.KEEP, "rows": ranges.ROWS}, of_pipe("complete", PICTURE, num=1)
    ),
    ImageGPTPipeline.complete_ids: (DRAWING, of_pipe("complete_ids", IDS[:, :4], num=1)),
    ImageGPTPipeline.fill: (
        {"num": ranges.NUM_IMAGES, "seed": ranges.SEED, **RULES},
        lambda made, **number: made["bert"].fill(PICTURE, MASK, **{"num": 1, **number}),
    ),
    ImageGPTPipeline.prompt_length: ({"keep": ranges.KEEP, "rows": ranges.ROWS}, of_pipe("prompt_length")),
    ImageGPTPipeline.__init__: (
        {"max_memory": ranges.MEMORY_BYTES},
        lambda made, **number: ImageGPTPipeline(made["pipe"].model, made["pipe"].processor, **number),
    ),
    ImageGPTPipeline.from_pretrained: (
        {"max_memory": ranges.MEMORY_BYTES}, lambda made, **number: ImageGPTPipeline.from_pretrained("digits", **number)
    ),
    Sampler.__init__: (
        {"max_memory": ranges.MEMORY_BYTES}, lambda made, **number: Sampler(made["pipe"].model, **number)
    ),
    Sampler.generate: (
        {"seeds": ranges.SEED, "num_pixels": ranges.PIXELS},
        lambda made, seeds=0, **number: made["pipe"].sampler.generate(seeds=[seeds], **number),
    ),
    Sampler.run: (
        {"seeds": ranges.SEED, "num_pixels": ranges.PIXELS},
        lambda made, seeds=0, **number: made["pipe"].sampler.run(seeds=[seeds], **number),
    ),
    Sampler.stream: (
        {"seeds": ranges.SEED, "num_pixels": ranges.PIXELS, "row_length": ranges.PIXELS},
        lambda made, seeds=0, **number: list(made["pipe"].sampler.stream(seeds=[seeds], **number)),
    ),
    SamplingRules: (RULES, lambda made, **number: SamplingRules(**number)),
    FillSchedule: (
        {"passes": ranges.PASSES, "refills": ranges.REFILLS, "refill_fraction": ranges.REFILL_FRACTION},
        lambda made, **number: FillSchedule(**number),
    ),
    fill: (
        {"seeds": ranges.SEED}, lambda made, seeds: fill(made["bert"].model, IDS, IDS == 0, seeds=[seeds]),
    ),
    image_seed: (
        {"seed": ranges.SEED, "index": ranges.INDEX},
        lambda made, **number: image_seed(**{"seed": 0, "index": 0, **number}),
    ),
    sample_many: (
        {**{name: DRAWING[name] for name in ("num", "seed", "batch_size")}, "shard_size": ranges.SHARD_IMAGES},
        lambda made, **number: sample_many(made["pipe"], folder=made["folder"] / "run", **{"num": 1, **number}),
    ),
    Ranks: (
        {
            "rank": ranges.RANK, "world_size": ranges.WORLD_SIZE, "local_rank": ranges.RANK,
            "local_world_size": ranges.WORLD_SIZE,
        },
        lambda made, **number: Ranks(**number),
    ),
    encode: (
        {"num_workers": ranges.WORKERS, "max_broken": ranges.BROKEN_FRACTION, "shard_size": ranges.SHARD_IMAGES},
        lambda made, **number: encode(
            "digits", made["folder"] / "ids", made["pipe"].processor, split="test", **number
        ),
    ),
    fit_palette: (
        {
            "num_colors": ranges.COLORS, "seed": ranges.FITTING_SEED, "max_images": ranges.DATASET_SIZE,
            "max_broken": ranges.BROKEN_FRACTION,
        },
        lambda made, **number: fit_palette(
            open_images("digits", split="test"),
            processor=ImageGPTImageProcessor(size=4),
            **{"num_colors": 2, "max_images": 4, **number},
        ),
    ),
    ColorPalette.fit: (
        {"num_colors": ranges.COLORS, "seed": ranges.FITTING_SEED, "max_pixels": ranges.PALETTE_PIXELS},
        lambda made, **number: ColorPalette.fit(
            np.asarray(PICTURE.convert("RGB")), **{"num_colors": 2, "max_pixels": 1000, **number}
        ),
    ),
    ColorPalette.grey: ({"num_colors": ranges.GREY_LEVELS}, lambda made, **number: ColorPalette.grey(**number)),
    BenchmarkOptions: (
        {
            "batches": ranges.BATCH_SIZE, "num_pixels": ranges.PIXELS, "repeats": ranges.REPEATS,
            "reference_pixels": ranges.PIXELS,
        },
        lambda made, batches=1, **number: BenchmarkOptions(model="digits", batches=[batches], **number),
    ),
    mean_nll: ({"batch_size": ranges.BATCH_SIZE}, lambda made, **number: mean_nll(made["pipe"].model, IDS, **number)),
    pixel_nll: ({"batch_size": ranges.BATCH_SIZE}, lambda made, **number: pixel_nll(made["pipe"].model, IDS, **number)),
    write_bundle: (
        {"num_shards": ranges.SHARD_FILES},
        lambda made, **number: write_bundle(made["folder"] / "bundle", {"x": np.zeros(2, np.float32)}, **number),
    ),
    ImageGPTConfig: (
        {
            "vocab_size": ranges.VOCABULARY, "n_positions": ranges.PIXELS, "n_embd": ranges.WIDTH,
            "n_layer": ranges.LAYERS, "n_head": ranges.HEADS, "n_inner": ranges.INNER_WIDTH,
            "resid_pdrop": ranges.DROPOUT, "embd_pdrop": ranges.DROPOUT, "attn_pdrop": ranges.DROPOUT,
            "layer_norm_epsilon": ranges.NORM_EPSILON, "initializer_range": ranges.WEIGHT_SCALE,
            "pad_token_id": ranges.TOKEN, "bos_token_id": ranges.TOKEN, "eos_token_id": ranges.TOKEN,
        },
        lambda made, **number: ImageGPTConfig(**number),
    ),
    ProcessingOptions: (
        {"rescale_factor": ranges.RESCALE_FACTOR},
        lambda made, **number: ProcessingOptions(do_color_quantize=False, **number),
    ),
}  # fmt: skip

# Their range depends on the image or model; separate tests check the message.
BY_THE_MODEL = {(ImageGPTConfig, "pruned_heads")}
# Sides of images, as a number, a pair or a mapping; tested separately below.
SIDES = {(ImageGPTImageProcessor.__init__, "size"), (ImageGPTImageProcessor.decode, "size")}
OTHER_CHECKS = {
    (ImageGPTImageProcessor.__init__, "resample"),  # one of Pillow's filters
    (ProcessingOptions, "resample"),
    (ImageGPTImageProcessor.__init__, "background"),  # three values from 0 to 255
}


def public_callables():
    """The doors above, and every public method of the classes users import."""
    yield from DOORS
    for kind in (ImageGPTPipeline, ImageGPTImageProcessor, ColorPalette, Sampler):
        for name in vars(kind):
            if (not name.startswith("_") or name == "__init__") and inspect.isroutine(getattr(kind, name)):
                yield getattr(kind, name)


def numeric_parameters(function):
    """Names of a callable's parameters that take numbers, those in a typed ** among them."""
    if inspect.isclass(function):
        return [name for name, hint in inspect.get_annotations(function).items() if numbers_in(hint)]
    names = []
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if typing.get_origin(parameter.annotation) is typing.Unpack:
            (fields,) = typing.get_args(parameter.annotation)
            if fields is ImageGPTImageProcessorKwargs:  # all of them go through ProcessingOptions
                continue
            names += [field for field, hint in typing.get_type_hints(fields).items() if numbers_in(hint)]
        elif name in hints and numbers_in(hints[name]):
            names.append(name)
    return names


def test_every_public_number_in_python_has_a_range():
    callables = list(public_callables())
    assert len(callables) >= 35
    found = {(function, name) for function in callables for name in numeric_parameters(function)}
    found = {(getattr(function, "__func__", function), name) for function, name in found}
    declared = {
        (getattr(function, "__func__", function), name) for function, (named, _) in DOORS.items() for name in named
    }
    assert found - declared - BY_THE_MODEL - SIDES - OTHER_CHECKS == set()
    assert declared - found == set(), "these parameters are gone"


@pytest.mark.parametrize(
    ("function", "name"),
    [(function, name) for function, (named, _) in DOORS.items() for name in named],
    ids=[f"{function.__qualname__}-{name}" for function, (named, _) in DOORS.items() for name in named],
)
def test_python_arguments_are_checked_and_may_be_of_other_libraries(function, name, pipe, bert, tmp_path):
    named, call = DOORS[function]
    allowed, made = named[name], {"pipe": pipe, "bert": bert, "folder": tmp_path}
    called = {"seeds": "seed", "batches": "one of batches", "index": "the index of an image"}.get(name, name)
    for value in [*outside(allowed), True]:
        with pytest.raises(ValueError, match=sentence(called, allowed)):
            call(made, **{name: value})
    assert list(tmp_path.iterdir()) == []
    if allowed.kind is float:
        call(made, **{name: np.float64(0.5)})
        return
    inside = {"num_pixels": 4, "row_length": 4, "max_memory": 10**9, "n_embd": 64, "max_pixels": 1000}.get(
        name, allowed.min
    )
    call(made, **{name: np.int64(inside)})
