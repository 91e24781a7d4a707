"""Recipes in YAML, and palettes in their three formats."""

import hashlib
import io
import json
from importlib import resources
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np
import yaml

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.training.recipe_io import read_recipe

from .cases import Kind
from .formats import damage_npy
from .mutations import DEEP, damage_json, damage_tree

SMALL_RECIPE = (
    "model: {n_layer: 2, n_embd: 32, n_head: 4}\ndata: {train: digits}\ntraining: {num_steps: 5, warmup_steps: 1}\n"
)


def damage_yaml(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a value in YAML, or use features of YAML that recipes do not need."""
    how = rng.choice(("tree",) * 8 + tuple(_ODD_YAML))
    if how != "tree":
        text = content.decode()
        return (_ODD_YAML[how] + text if rng.random() < 0.5 else text + "\n" + _ODD_YAML[how]).encode(), how
    tree, change = damage_tree(yaml.safe_load(content), rng)
    text = yaml.safe_dump(tree, default_flow_style=rng.choice((None, True, False)))
    depth = rng.choice((100, 1_000, 100_000))
    return text.replace(f"'{DEEP}'", "[" * depth + "]" * depth).encode(), change


def _nested_aliases() -> str:
    """A few lines that expand to 10^9 values."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * 10) + "]"]
    lines += [f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * 10) + "]" for level in range(1, 9)]
    return "\n".join(lines) + "\n"


_ODD_YAML = {
    "nested aliases": _nested_aliases(),
    "nested aliases in a section": "card: {title: " + "&a [" * 40 + "x" + "]" * 40 + "}\n",
    "alias to itself": "card: &a {title: *a}\n",
    "merge": "card: &a {title: x}\nwatch: {<<: *a}\n",
    "many merges": "card: &a {" + ", ".join(f"k{n}: x" for n in range(9)) + "}\nwatch: {<<: [" + "*a," * 999 + "*a]}\n",
    "tag": "card: !!python/object/apply:os.getcwd []\n",
    "binary": "card: {title: !!binary aGVsbG8=}\n",
    "set": "card: {title: !!set {a, b}}\n",
    "key of a list": "? [a, b]\n: x\n",
    "key of a mapping": "? {a: b}\n: x\n",
    "null key": "null: x\n",
    "date": "card: {title: 2001-12-14t21:59:43.10-05:00, license: 2001-99-99}\n",
    "sexagesimal": "training: {num_steps: 1:30}\n",
    "two documents": "---\nx: 1\n---\ny: 2\n",
    "directive": "%YAML 9.9\n---\n",
    "huge number": "training: {num_steps: " + "9" * 5_000 + "}\n",
    "hexadecimal": "training: {num_steps: 0x" + "f" * 5_000 + "}\n",
    "odd letters": "card: {title: \"\\ud800\\0\\x07\"}\n",
}  # fmt: skip


class Recipes(Kind):
    """Recipes and palette files."""

    name = "recipes"
    num_cases = 1_000
    first_parser = "the file is YAML, JSON or a .npy with a header that NumPy takes"
    imports = ("imagegpt", "imagegpt.training.recipe_io", "yaml")
    formats: ClassVar = {".yaml": damage_yaml, ".json": damage_json, ".npy": damage_npy}

    def prepare(self) -> None:
        """Write our recipes, bundled and with all defaults; palettes as arrays of several types and in processors."""
        texts = {
            path.name: path.read_text()
            for path in resources.files("imagegpt.configs").iterdir()
            if path.name.endswith(".yaml")
        }
        for name, text in {**texts, "small.yaml": SMALL_RECIPE}.items():
            (self.folder / name).mkdir()
            (self.folder / name / "recipe.yaml").write_text(text)
        spelt_out = read_recipe(self.folder / "small.yaml" / "recipe.yaml").to_yaml()
        (self.folder / "spelt-out").mkdir()
        (self.folder / "spelt-out" / "recipe.yaml").write_text(spelt_out)
        clusters = ColorPalette.grey(16).clusters
        for name, array in {"float32": clusters, "float64": clusters.astype(np.float64)}.items():
            (self.folder / name).mkdir()
            np.save(self.folder / name / "palette.npy", array)
        ImageGPTImageProcessor(ColorPalette.grey(16), size=4).save_pretrained(self.folder / "processor")

    def passes_first_parser(self, case_folder: Path) -> bool:
        """See `first_parser`."""
        (path,) = case_folder.iterdir()
        content = path.read_bytes()
        if path.suffix == ".npy":
            np.lib.format.read_magic(file := io.BytesIO(content))
            np.lib.format.read_array_header_1_0(file)
        elif path.suffix == ".json":
            json.loads(content)
        else:
            yaml.safe_load(content)
        return True

    def open(self, case_folder: Path) -> str:
        """Read the file as `train` and `encode` do."""
        (path,) = case_folder.iterdir()
        if path.suffix == ".yaml":
            return hashlib.sha256(read_recipe(path).to_yaml().encode()).hexdigest()
        palette = ColorPalette.load(path)
        if path.suffix == ".json":
            processor = ImageGPTImageProcessor.from_json_file(path)
            if processor.size["height"] * processor.size["width"] <= 4096:
                processor(np.zeros((4, 4, 3), np.uint8))
            ImageGPTImageProcessor.from_pretrained(case_folder)
        palette.encode(np.zeros((2, 2, 3), np.uint8))
        return palette.fingerprint
