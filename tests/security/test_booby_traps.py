"""Files of every kind with embedded code: they load or are refused with one sentence, and the code never runs.

A child process opens them under an audit hook, see `opening.py`. Pickles with a trap, and modules beside the files,
create a folder `sprung` if they run. `pytorch_model.bin`, which torch unpickles with `weights_only=True`, has its own
test, because torch looks up the classes of tensors.
"""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pyarrow import parquet

from helpers import tiny_model
from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.checkpoints.openai import to_openai
from imagegpt.checkpoints.tensor_bundle import write_bundle
from imagegpt.jobs.encode import encode
from imagegpt.training.checkpoint import Checkpoints
from opening import ALONE, RECIPE, run

TESTS = Path(__file__).parents[1]


class Trap:
    """When unpickled, creates a folder."""

    def __init__(self, folder):
        self.target = folder / "sprung"

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Traps:
    """The files, clean and trapped.

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
        """Add a job whose trapped file or folder is a modified copy."""
        trapped = clean.parent / f"trapped-{name}" / clean.name
        trapped.parent.mkdir()
        shutil.copytree(clean, trapped) if clean.is_dir() else shutil.copy(clean, trapped)
        change(trapped)
        self.jobs.append((kind, str(clean), str(trapped)))
        self.names.append(name)

    def add_model(self, name, change):
        """Add a model folder for both loaders, with code beside it."""

        def with_code(path):
            for file in ("modeling.py", "evil.py", "custom_generate/generate.py", "kernel/build/torch-ext/__init__.py"):
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                (path / file).write_text(self.code)
            change(path)

        for kind in ("model", "transformers"):
            self.add(f"{name}-{kind}", kind, self.model, with_code)


def fields(file, **changes):
    """Return a function that changes fields of a JSON file."""

    def change(folder):
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**content, **changes}))

    return change


def add_models(traps):
    """Add everything that a model folder may request."""
    config = "config.json"
    traps.add_model("beside", lambda _: None)
    traps.add_model("auto_map", fields(config, auto_map={"AutoModel": "modeling.Model", "AutoConfig": "evil.Config"}))
    traps.add_model("trust", fields(config, trust_remote_code=True, auto_map={"AutoModel": "evil--code.Model"}))
    traps.add_model("kernel", fields(config, attn_implementation="evil/kernel"))
    traps.add_model("kernel-2", fields(config, _attn_implementation="evil/kernel:run"))
    traps.add_model("flash", fields(config, attn_implementation="flash_attention_3"))
    traps.add_model("fusion", fields(config, fusion_config={"patch_embeddings": True}))
    traps.add_model("kernels", fields(config, kernel_config={"kernel_mapping": {"Block": "evil/kernel:run"}}))
    traps.add_model("experts", fields(config, experts_implementation="evil/kernel"))
    traps.add_model("layers", fields(config, per_layer_config={"0": {"n_inner": 8}}))
    traps.add_model("distribution", fields(config, distributed_config={"tp_plan": "auto"}))

    def second(folder):  # transformers reads it in target of config.json
        asked = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
        content = json.loads((folder / config).read_text())
        (folder / "config.4.0.0.json").write_text(json.dumps(content | asked))
        fields(config, configuration_files=["config.4.0.0.json"])(folder)

    traps.add_model("second", second)
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

    def checkpoint(folder):  # transformers reads it with torch.distributed.checkpoint
        (folder / "model.safetensors").rename(folder / "shard-00001-model-00001-of-00001.safetensors")
        (folder / ".metadata").write_bytes(traps.trap)

    traps.add_model("distributed", checkpoint)


def add_others(traps):
    """Add training runs, images, palettes, recipes and TensorFlow checkpoints."""
    folder, trap = traps.folder, traps.trap
    Checkpoints(folder / "run", ALONE, 1).save(2, *run(), {"step": 2})

    def metadata(version):
        def change(run):
            (path,) = run.iterdir()
            (path / ".metadata").write_bytes(trap)
            (path / "__0_0.distcp").write_bytes(trap)
            fields("trainer_state.json", format_version=version)(path)
            listed = json.loads((path / "manifest.json").read_text())
            from imagegpt.training.checkpoint import _size_and_hash

            listed |= {
                name: _size_and_hash(path / name) for name in ("trainer_state.json", ".metadata", "__0_0.distcp")
            }
            (path / "manifest.json").write_text(json.dumps(listed))

        return change

    traps.add("checkpoint", "checkpoint", folder / "run", metadata(3))
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


def png(folder, name="a.png"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / name)
    return (folder / name).read_bytes()


def add_pictures(traps):
    """Add image files with code in their metadata, and one that is a program."""
    folder, trap = traps.folder / "photos", traps.trap
    for suffix in ("png", "webp", "tiff", "jpg"):
        png(folder / suffix, f"a.{suffix}")

    def save(suffix, **options):
        def change(target):
            Image.open(target / f"a.{suffix}").save(target / f"a.{suffix}", **options)

        traps.add(f"photo-{suffix}-{'-'.join(options)}", "pictures", folder / suffix, change)

    info = PngInfo()
    info.add(b"eXIf", trap)
    info.add(b"piCk", trap)
    info.add_text("Raw profile type exif", f"\nexif\n{len(trap)}\n{trap.hex()}\n")
    save("png", pnginfo=info)
    save("png", icc_profile=trap)
    for suffix in ("webp", "jpg"):
        save(suffix, exif=b"Exif\0\0" + trap)
        save(suffix, icc_profile=trap)
    save("webp", xmp=trap)
    save("tiff", tiffinfo={270: traps.code, 700: trap, 34377: trap, 65000: trap})
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({folder}/sprung) (w) file closefile\n"
    for suffix in ("png", "jpg"):
        traps.add(
            f"postscript-{suffix}", "pictures", folder / suffix,
            lambda target: next(target.iterdir()).write_text(program),
        )  # fmt: skip


def add_tables(traps):
    """Add tables whose columns and metadata refer to code or to other files."""
    folder, trap = traps.folder / "tables", traps.trap
    cells = [{"bytes": png(traps.folder / "cell"), "path": "a.png"}] * 2
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    made = datasets.Dataset.from_dict({"image": cells, "label": [0, 1]}, features)
    made.save_to_disk(folder / "saved")
    (folder / "parquet").mkdir()
    made.to_parquet(folder / "parquet" / "a.parquet")
    shard = "data-00000-of-00001.arrow"
    evil = {
        "image": {"_type": "evil.Image", "_target_": "os.system"},
        "label": {"_type": "subprocess.Popen", "args": "x"},
    }
    described = json.dumps({"info": {"features": evil}}).encode()
    descriptions = {"features": {b"huggingface": described}, "pandas": {b"pandas": trap, b"imagegpt": trap}}

    def rewritten(change, suffix):
        def rewrite(target):
            with pyarrow.ipc.open_stream((folder / "saved" / shard).read_bytes()) as stream:
                table = change(stream.read_all())
            if suffix == "parquet":
                parquet.write_table(table, target / "a.parquet")
                return
            with (
                pyarrow.OSFile(str(target / shard), "wb") as file,
                pyarrow.ipc.new_stream(file, table.schema) as stream,
            ):
                stream.write_table(table)

        return rewrite

    def with_extension(table):
        """Add an extension type that old versions of pyarrow unpickled."""
        about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": trap}
        fields = [field.with_metadata(about) for field in table.schema]
        return table.cast(pyarrow.schema(fields, table.schema.metadata))

    def with_path(table):
        cell = {"bytes": None, "path": "/dev/zero"}
        return table.set_column(0, "image", pyarrow.array([cell, cell], table.schema.field("image").type))

    def with_program(table):
        cell = {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "path": "a.png"}
        return table.set_column(0, "image", pyarrow.array([cell, cell], table.schema.field("image").type))

    changes = {
        name: lambda table, about=about: table.replace_schema_metadata(about) for name, about in descriptions.items()
    }
    changes |= {"extension": with_extension, "device": with_path, "postscript": with_program}
    for kind, clean in (("arrow", folder / "saved"), ("parquet", folder / "parquet")):
        for name, change in changes.items():
            traps.add(f"{kind}-{name}", "pictures", clean, rewritten(change, kind))

    def with_code(target):
        for name in ("saved.py", "dataset.py", "loading.py"):
            (target / name).write_text(traps.code)
        fields("dataset_info.json", features=evil, builder_name="evil", download_checksums={"http://evil": 1})(target)

    traps.add("arrow-info", "pictures", folder / "saved", with_code)
    for name in ("../../saved/" + shard, str(folder / "saved" / shard)):
        listed = [{"filename": name}]
        traps.add(f"arrow-state-{name[0]}", "pictures", folder / "saved", fields("state.json", _data_files=listed))

    np.savez(folder / "a.npz", images=np.zeros((2, 4, 4), np.uint8))
    encode(folder / "a.npz", folder / "encoded", ImageGPTImageProcessor(ColorPalette.grey(16), size=4))

    def with_pickle(target):
        path = target / shard
        with pyarrow.ipc.open_stream(path.read_bytes()) as stream:
            table = with_extension(stream.read_all())
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        fields("encoding.json", checksums={shard: hashlib.sha256(path.read_bytes()).hexdigest()})(target)

    traps.add("encoded-extension", "encoded", folder / "encoded", with_pickle)
    traps.add("encoded-info", "encoded", folder / "encoded", with_code)
    traps.add("encoded-shard", "encoded", folder / "encoded", lambda target: (target / shard).write_bytes(trap))


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    made = Traps(tmp_path_factory.mktemp("traps"))
    add_models(made)
    add_others(made)
    add_pictures(made)
    add_tables(made)
    return made


@pytest.fixture(scope="module")
def reports(traps):
    """What the child reports for each file, by name."""
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
    lines = [line.removeprefix("REPORT ") for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    return dict(zip(traps.names, map(json.loads, lines), strict=True))


def test_files_without_a_trap_load(reports):
    assert {name: one["clean"] for name, one in reports.items() if one["clean"]} == {}


def test_no_code_runs_and_nothing_is_imported_or_downloaded(reports, traps):
    assert {name: one["seen"] for name, one in reports.items() if one["seen"]} == {}
    assert not (traps.folder / "sprung").exists()


def test_refusals_are_one_sentence(reports):
    for name, one in reports.items():
        assert "\n" not in one["trapped"], name
        assert not one["trapped"] or one["trapped"].partition(":")[0] in ("ValueError", "FileNotFoundError"), (
            name,
            one,
        )
    ignored = {name for name, one in reports.items() if not one["trapped"]}  # never read
    assert ignored == {
        f"{name}-{kind}" for name in ("beside", "processor", "generation") for kind in ("model", "transformers")
    } | {name for name in reports if name.startswith("photo-")} | {
        "checkpoint", "distributed-transformers", "arrow-features", "arrow-pandas", "arrow-extension", "arrow-info",
        "parquet-pandas", "parquet-extension", "encoded-extension", "encoded-info",
    }  # fmt: skip


def test_pickled_weights_run_no_code(traps, tmp_path):
    from imagegpt.checkpoints.loading import load_model

    folder = shutil.copytree(traps.model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap(tmp_path)}, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_model(folder)
    assert not (tmp_path / "sprung").exists()
