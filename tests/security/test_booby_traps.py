"""A file of each kind with something in it that wants to run: it is opened, or refused in a sentence, and nothing runs.

A child process opens them under an audit hook, see `opening.py`. The trap of pickles and the modules that lie beside
the files make a file `sprung` when they run. `pytorch_model.bin`, which torch unpickles with `weights_only=True`, has a
test of its own, because torch looks up the classes of tensors.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import tiny_model
from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.checkpoints.openai import to_openai
from imagegpt.checkpoints.tensor_bundle import write_bundle
from imagegpt.training.checkpoints import Checkpoints
from opening import ALONE, RECIPE, run

TESTS = Path(__file__).parents[1]


class Trap:
    """Pickled, it is a call that makes a file."""

    def __init__(self, folder):
        self.place = folder / "sprung"

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


class Traps:
    """The files, with and without traps.

    Attributes:
        jobs: (kind, clean, trapped), for `opening.py`.
    """

    def __init__(self, folder):
        self.folder, self.jobs, self.names = folder, [], []
        self.trap = pickle.dumps(Trap(folder), 2)
        self.code = f"import os\nos.mkdir({str(folder / 'sprung')!r})\n"
        self.model = folder / "model"
        tiny_model().save_pretrained(self.model)
        ImageGPTImageProcessor(ColorPalette.grey(16), size=4).save_pretrained(self.model)

    def add(self, name, kind, clean, change):
        """A job whose trapped file or folder is a copy that was changed."""
        trapped = clean.parent / f"trapped-{name}" / clean.name
        trapped.parent.mkdir()
        shutil.copytree(clean, trapped) if clean.is_dir() else shutil.copy(clean, trapped)
        change(trapped)
        self.jobs.append((kind, str(clean), str(trapped)))
        self.names.append(name)

    def add_model(self, name, change):
        """The same for a folder with a model, by both loaders, with code beside it."""

        def with_code(path):
            for file in ("modeling.py", "evil.py", "custom_generate/generate.py", "kernel/build/torch-ext/__init__.py"):
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                (path / file).write_text(self.code)
            change(path)

        for kind in ("model", "transformers"):
            self.add(f"{name}-{kind}", kind, self.model, with_code)


def fields(file, **changes):
    """A change of some fields of a JSON file."""

    def change(folder):
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**content, **changes}))

    return change


def add_models(traps):
    """Everything that a folder with a model may ask for."""
    config = "config.json"
    traps.add_model("beside", lambda _: None)
    traps.add_model("auto_map", fields(config, auto_map={"AutoModel": "modeling.Model", "AutoConfig": "evil.Config"}))
    traps.add_model("trust", fields(config, trust_remote_code=True, auto_map={"AutoModel": "evil--code.Model"}))
    traps.add_model("kernel", fields(config, attn_implementation="evil/kernel"))
    traps.add_model("kernel-2", fields(config, _attn_implementation="evil/kernel:run"))
    traps.add_model("flash", fields(config, attn_implementation="flash_attention_3"))
    for method in ("bitsandbytes", "gptq", "awq", "quanto", "torchao"):
        traps.add_model(method, fields(config, quantization_config={"quant_method": method, "load_in_8bit": True}))
    traps.add_model(
        "adapter", fields("adapter_config.json", peft_type="LORA", megatron_config={"a": 1}, megatron_core="evil")
    )
    traps.add_model("x-lora", fields("adapter_config.json", peft_type="XLORA", adapters={"a": "evil/adapter"}))
    traps.add_model("processor", fields("preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"}))
    traps.add_model(
        "generation", fields("generation_config.json", custom_generate="custom_generate", trust_remote_code=True)
    )

    def follow(folder):
        (folder / config).unlink()
        fields("adapter_config.json", peft_type="LORA", base_model_name_or_path="evil/model")(folder)

    traps.add_model("followed", follow)

    def index(folder):
        (folder / "model.safetensors").unlink()
        names = dict.fromkeys(tiny_model().state_dict(), "../../../pickled/pytorch_model.bin")
        fields("pytorch_model.bin.index.json", metadata={"total_size": 1}, weight_map=names)(folder)

    traps.add_model("index", index)

    def checkpoint(folder):  # which transformers reads with torch.distributed.checkpoint
        (folder / "model.safetensors").rename(folder / "shard-00001-model-00001-of-00001.safetensors")
        (folder / ".metadata").write_bytes(traps.trap)

    traps.add_model("distributed", checkpoint)


def add_others(traps):
    """Runs, images, palettes, recipes, TensorFlow's checkpoints."""
    folder, trap = traps.folder, traps.trap
    Checkpoints(folder / "run", ALONE, 1).save(2, *run(), {"step": 2})

    def metadata(version):
        def change(run):
            (path,) = run.iterdir()
            (path / ".metadata").write_bytes(trap)
            (path / "__0_0.distcp").write_bytes(trap)
            fields("progress.json", format_version=version)(path)
            listed = json.loads((path / "manifest.json").read_text())
            from imagegpt.training.checkpoints import _described

            listed |= {name: _described(path / name) for name in ("progress.json", ".metadata", "__0_0.distcp")}
            (path / "manifest.json").write_text(json.dumps(listed))

        return change

    traps.add("checkpoint", "checkpoint", folder / "run", metadata(2))
    traps.add("old-checkpoint", "checkpoint", folder / "run", metadata(1))

    batches = folder / "cifar"
    batches.mkdir()
    images = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}
    (batches / "test_batch").write_bytes(pickle.dumps(images, 2))
    traps.add("cifar", "images", batches / "test_batch", lambda path: path.write_bytes(trap))
    traps.add(
        "cifar-names", "images", batches / "test_batch", lambda path: (path.parent / "batches.meta").write_bytes(trap)
    )

    for name, kind, array in (
        ("centers", "palette", ColorPalette.grey(16).clusters),
        ("pictures", "images", np.zeros((2, 4, 4), np.uint8)),
    ):
        np.save(folder / f"{name}.npy", array)
        objects = np.array([Trap(folder)], object)
        traps.add(name, kind, folder / f"{name}.npy", lambda path, objects=objects: np.save(path, objects))

    (folder / "recipe.yaml").write_text(RECIPE)
    for tag in ("python/object/apply:os.mkdir [sprung]", "python/module:antigravity x", "python/name:os.system x"):
        text = RECIPE.replace("digits", f"!!{tag}")
        name = tag.partition(" ")[0].replace("/", "-")
        traps.add(name, "recipe", folder / "recipe.yaml", lambda path, text=text: path.write_text(text))

    model = tiny_model(use_bias=False)
    write_bundle(folder / "bundle", to_openai(model.config, model.state_dict()))
    traps.add("bundle", "list", folder / "bundle.index", lambda path: path.write_bytes(trap))
    traps.add("safetensors", "list", traps.model, lambda path: (path / "model.safetensors").write_bytes(trap))


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    made = Traps(tmp_path_factory.mktemp("traps"))
    add_models(made)
    add_others(made)
    return made


@pytest.fixture(scope="module")
def told(traps):
    """What the child tells of each file, by name."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("opening.py"), json.dumps(traps.jobs)],
        env={**os.environ, "PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "0"},
        cwd=traps.folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("TOLD ") for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    return dict(zip(traps.names, map(json.loads, lines), strict=True))


def test_files_without_a_trap_open(told):
    assert {name: one["clean"] for name, one in told.items() if one["clean"]} == {}


def test_nothing_runs_is_imported_or_fetched(told, traps):
    assert {name: one["seen"] for name, one in told.items() if one["seen"]} == {}
    assert not (traps.folder / "sprung").exists()


def test_what_is_refused_is_refused_in_a_sentence(told):
    for name, one in told.items():
        assert "\n" not in one["trapped"], name
        assert not one["trapped"] or one["trapped"].partition(":")[0] in ("ValueError", "FileNotFoundError"), (
            name,
            one,
        )
    ignored = {name for name, one in told.items() if not one["trapped"]}  # which were never read
    assert ignored == {
        f"{name}-{kind}" for name in ("beside", "processor", "generation") for kind in ("model", "transformers")
    } | {"checkpoint", "distributed-transformers"}


def test_pickled_weights_run_nothing(traps, tmp_path):
    from imagegpt.checkpoints.loading import load_model

    folder = shutil.copytree(traps.model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap(tmp_path)}, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_model(folder)
    assert not (tmp_path / "sprung").exists()
