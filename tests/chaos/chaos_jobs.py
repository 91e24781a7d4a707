"""The commands that are put in trouble, all on tiny work, and what their places hold."""

import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagegpt import ColorPalette, ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTImageProcessor
from imagegpt.checkpoints.saving import save_folder
from imagegpt.checkpoints.tensor_bundle import write_bundle
from imagegpt.cli import main
from openai_oracle import random_variables

_SETTLING_S = 3  # hashes are kept of files that have not been touched for a while

# Files of the user's that look a bit like ours, beside what the command writes.
BYSTANDERS = ("photo.jpg", ".notes.tmp", ".saving.mine", ".out.notes.making", ".out.12345678.tmp.txt")
_TIMES = [
    (r'"(elapsed_s|trained_s|images)": [-+.e\d]+', r'"\1": 0'),  # images: of this process, for its speed
    (r'\[\s*\d+,\s*"[0-9a-f]{64}"\s*\]', "[]"),  # the size and hash of a file with times
    (r"[.\d]+ (minutes|hours) on", "0 minutes on"),
]


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        words: of it; what it writes is called "out".
        force: whether it knows --force.
        earlier: another command, which has written "out" before.
        inside: whether bystanders are in "out", too.
    """

    words: tuple[str, ...]
    force: bool = True
    earlier: tuple[str, ...] = ()
    inside: bool = False

    @property
    def command(self):
        return partial(main, list(self.words))

    @property
    def forced(self):
        return partial(main, [*self.words, "--force"]) if self.force else None

    def prepare(self, place, inputs):
        """Fill a place before the command runs; the kernels are built already, since compilers take long."""
        kernels = inputs / "kernels"
        if self.words[:1] in (("sample",), ("complete",), ("train",)):
            if not kernels.exists():
                in_child(partial(_build_kernels, inputs, kernels))
            shutil.copytree(kernels, place / "cache")
        if self.earlier:
            in_child(partial(_run, place, self.earlier))
        for folder in (place, place / "out") if self.inside else (place,):
            for name in BYSTANDERS:
                (folder / name).write_text(name)

    def contents(self, place):
        """Every file of a place, without the empty ones that are locked, and without times."""
        paths = (path for path in place.rglob("*") if path.suffix != ".lock" and "__pycache__" not in path.parts)
        return {str(path.relative_to(place)): _content(path) for path in paths}


class Careless(Job):
    """A command that writes as one should not: it takes any file that is there for a whole one."""

    @property
    def command(self):
        return self._write

    @staticmethod
    def _write():
        path = Path("out")
        if not path.exists():
            try:
                path.write_bytes(bytes(range(256)))
            except OSError as error:
                sys.stderr.write(f"error: {error}\n")
                raise SystemExit(2) from None


def jobs(inputs, address):
    """All jobs by their names.

    Args:
        inputs: a folder that `make_inputs` has filled.
        address: of a server with OpenAI's files, for `download`.
    """
    sets = [
        "model.n_layer=1", "model.n_embd=8", "model.n_head=2", f"data.train={inputs / 'encoded'}",
        "data.split.validation=0.2", "training.num_steps=3", "training.batch_size=4", "training.warmup_steps=1",
        "monitoring.validate_every=2", "monitoring.checkpoint_every=1", "monitoring.keep_checkpoints=2",
        "monitoring.samples=1",
    ]  # fmt: skip
    train = ("train", "pictures", "--out", "out", *(word for one in sets for word in ("--set", one)))
    sample = ("sample", "--model", str(inputs / "tiny"), "--num", "5", "--batch-size", "2", "--out", "out")
    palette = ("--palette", str(inputs / "tiny"), "--size", "4", "--workers", "1")
    transformers = ("convert", "transformers", str(inputs / "tiny"), "out")
    openai = ("convert", "openai", str(inputs / "ar"), "out")
    return {
        "train": Job(train),
        "train --force": Job((*train, "--force"), force=False, earlier=train, inside=True),
        "encode": Job(("encode", str(inputs / "pictures.npy"), "out", *palette), force=False),
        "encode parquet": Job(("encode", str(inputs / "few.npy"), "out", *palette, "--format", "parquet"), force=False),
        "encode splits": Job(("encode", str(inputs / "pictures"), "out", *palette), force=False),
        "sample png": Job(sample),
        "sample npz": Job((*sample, "--format", "npz")),
        "sample arrow": Job((*sample, "--format", "arrow")),
        "sample parquet": Job((*sample, "--format", "parquet")),
        "complete": Job(("complete", str(inputs / "pictures" / "train"), *sample[1:3], "--num", "1", "--out", "out")),
        "sample --force": Job((*sample, "--seed", "1", "--force"), force=False, earlier=sample),
        "convert transformers": Job(transformers),
        "convert openai": Job(openai),
        "convert --force": Job((*openai, "--force"), force=False, earlier=transformers),
        "export openai": Job(("export", "openai", str(inputs / "tiny"), "out", "--shards", "2")),
        "careless": Careless(()),
        "download": Job(("download", "s", "--step", "131000", "--out", "out", "--base", address), force=False),
    }


def make_inputs(inputs):
    """What the commands read: a model, a checkpoint of OpenAI's code, pictures in several forms."""
    torch.manual_seed(0)
    palette, rng = ColorPalette.grey(11), np.random.default_rng(0)
    config = ImageGPTConfig(vocab_size=12, n_positions=16, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5)
    save_folder(ImageGPTForCausalImageModeling(config), ImageGPTImageProcessor(palette, size=4), inputs / "tiny")
    write_bundle(inputs / "ar", random_variables(num_layers=1), num_shards=2)
    palette.save(inputs / "kmeans_centers.npy")
    np.save(inputs / "pictures.npy", rng.integers(0, 256, (1030, 4, 4, 3), np.uint8))  # two shards
    np.save(inputs / "few.npy", rng.integers(0, 256, (30, 4, 4, 3), np.uint8))
    for part in ("train", "test"):
        for label in ("cats", "dogs"):
            folder = inputs / "pictures" / part / label
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(folder / f"{number}.png")
    words = ("encode", str(inputs / "few.npy"), "encoded", "--palette", str(inputs / "tiny"), "--size", "4")
    _run(inputs, (*words, "--workers", "1"))
    time.sleep(_SETTLING_S)


def in_child(work):
    """Do something in a fork, so that no thread that it starts is in this process."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work() or 0
        except BaseException:  # noqa: BLE001 - it is told, and the process ends
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def _build_kernels(inputs, cache):
    for job in ("sample png", "complete", "train"):
        with tempfile.TemporaryDirectory() as folder:
            _run(Path(folder), jobs(inputs, "")[job].words, cache)


def _run(folder, words, cache=None):
    """Run a command in a folder; its exit status."""
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(cache or folder / "cache")
    try:
        main(list(words))
    except SystemExit as ended:
        return ended.code


def _content(path):
    if path.is_dir():
        return "a folder"
    content = path.read_bytes()
    if path.suffix == ".safetensors":  # its metadata are in any order
        end = 8 + int.from_bytes(content[:8], "little")
        return json.loads(content[8:end]), content[end:]
    if path.suffix not in (".json", ".jsonl", ".md"):
        return content
    text = content.decode(errors="replace")
    for pattern, instead in _TIMES:
        text = re.sub(pattern, instead, text)
    return text
