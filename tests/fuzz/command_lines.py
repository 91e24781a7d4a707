"""Command lines: every command with arguments changed, removed or added, and damaged files."""

import io
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from imagegpt import ColorPalette
from imagegpt.checkpoints.tensor_bundle import write_bundle
from imagegpt.jobs.encode import encode

from .bundles import variables
from .cases import Kind, Mutant, WrongExitError
from .encoded_folders import small_processor
from .model_folders import save, tiny_model
from .recipes import SMALL_RECIPE

_WORDS_FILE = "command.json"

COMMANDS = {
    "complete": "complete cat.png --model tiny --keep 0.5 --num 2 --seed 1 --out made.png",
    "complete-mask": "complete cat.png --model tiny --mask mask.png --num 1 --singles singles --gif made.gif",
    "sample": "sample --model tiny --num 2 --temperature 0.9 --top-k 5 --out made.png",
    "sample-folder": "sample --model tiny --num 3 --top-p 0.9 --out made --format png --batch-size 2",
    "sample-precise": "sample --model tiny --num 1 --min-p 0.1 --precision float32 --decoder parallel --max-memory 1",
    "fill": "fill cat.png --mask mask.png --model bert --num 1 --passes 2 --refills 1 --refill-fraction .2 --out x.png",
    "encode": "encode photos made --palette palette.npy --size 4 --resize crop --workers 1 --max-broken 0.5",
    "palette": "palette fit photos --out made --colors 4 --size 4 --seed 1 --grey --max-images 3",
    "info": "info tiny",
    "models": "models",
    "env": "env",
    "cache": "cache",
    "version": "--version",
    "inspect": "inspect tiny",
    "inspect-bundle": "inspect bundle/model.ckpt-7",
    "convert": "convert openai bundle/model.ckpt-7 made --palette palette.npy --objective ar --biases",
    "convert-transformers": "convert transformers tiny made",
    "export": "export openai tiny made --shards 2",
    "evaluate": "evaluate tiny encoded --split validation --device cpu",
    "train": "train recipe.yaml --out made --device cpu --set training.batch_size=2 --set training.num_steps=2",
    "finetune":
    "finetune tiny photos --out made --set training.batch_size=2 --set training.num_steps=2 "
    "--set training.warmup_steps=1 --lora 2",
    "download": "download s --out made --step 131000 --base http://127.0.0.1:1/x/",
}  # fmt: skip
_FEW_STEPS = ["--set", "training.num_steps=2", "--set", "training.warmup_steps=1"]  # appended last, to take precedence

_ABSOLUTE = ("/nonexistent/x", "/dev/null/x")
ODD_WORDS = (
    "", "0", "-1", "1", "2", "3", "1e400", "nan", "inf", "-inf", "x", "1.5", "0.0", "1e-9", "٣", "0x10", "1_0",
    str(2**63), "9" * 25, "true", "--", "-",
    "[bold]", "[/x]", ":smile:", "a b", "é", "\udcff", "\n", "missing.png", "tiny", "bert", "cat.png", "mask.png",
    "photos", "encoded", "palette.npy",
    "recipe.yaml", "bundle/model.ckpt-7", "bundle", "~", "~nosuchuser", ".", "..", "./x", "cat.png/x", "x" * 300,
    "digits", "digits-bert", "owner/model",
    "http://127.0.0.1:1/", "ftp://x", "file:///etc/passwd", *_ABSOLUTE, "cuda", "cuda:9", "mps", "meta", "cpu",
    "cpu:1", "bfloat16", "int8", "auto",
    "--force", "--help", "--traceback=1", "--num", "--out", "--model", "--seed=1", "--nonsense", "-x",
)  # fmt: skip
_CHANGES = (
    "training.batch_size", "training.learning_rate", "training.weight_decay", "training.precision", "training.seed",
    "model.n_layer", "model.n_head",
    "model.n_embd", "data.train", "data.split.seed", "data.split.validation", "data.palette", "data.side",
    "data.augmentation", "monitoring.samples", "card.title",
    "card", "x.y", "x", "",
)  # fmt: skip


class CommandLines(Kind):
    """Command lines of all commands but `bench`, which starts processes."""

    name = "commands"
    num_cases = 1_000
    refused = ("download",)  # there is no network
    first_parser = "typer takes the words, so that the command itself begins"
    imports = (
        "imagegpt.cli.app", "imagegpt.training.run", "imagegpt.jobs.sample", "imagegpt.evaluation.scoring",
        "imagegpt.figures.grids", "imagegpt.figures.animations", "imagegpt.sampling",
        "imagegpt.checkpoints.conversion", "imagegpt.checkpoints.openai_download", "imagegpt.jobs.encode",
        "imagegpt.pipeline.pipeline", "accelerate", "peft",
        "matplotlib.figure", "torch.utils.tensorboard", "datasets", "sklearn.cluster", "peft.tuners.lora",
        "imagegpt.training.run", "imagegpt.training.lr_finder",
        "imagegpt.training.card", "imagegpt.training.trainer", "imagegpt.data.palettes",
    )  # fmt: skip

    def prepare(self) -> None:
        """Write one folder per command, all with the same files."""
        case_folder = self.folder / "workplace"
        save(tiny_model(), case_folder / "tiny")
        save(tiny_model(is_causal=False), case_folder / "bert")
        (case_folder / "photos").mkdir()
        rng = np.random.default_rng(0)
        for number in range(8):
            name = ("a", "b")[number % 2]
            (case_folder / "photos" / name).mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(
                case_folder / "photos" / name / f"{number}.png"
            )
        Image.linear_gradient("L").save(case_folder / "cat.png")
        Image.fromarray(np.repeat([[255], [0]], [2, 2], axis=0).repeat(4, axis=1).astype(np.uint8)).save(
            case_folder / "mask.png"
        )
        ColorPalette.grey(10).save(case_folder / "palette.npy")
        (case_folder / "recipe.yaml").write_text(SMALL_RECIPE.replace("digits", "encoded"))
        (case_folder / "bundle").mkdir()
        write_bundle(case_folder / "bundle" / "model.ckpt-7", variables(num_colors=10), 1)
        np.savez(case_folder / "images.npz", images=rng.integers(0, 256, (40, 4, 4, 3), np.uint8))
        encode(case_folder / "images.npz", case_folder / "encoded", small_processor(10))
        for name, line in COMMANDS.items():
            shutil.copytree(case_folder, self.folder / name)
            (self.folder / name / _WORDS_FILE).write_text(json.dumps(line.split()))
        shutil.rmtree(case_folder)

    def mutate(self, case_folder: Path, rng: Random) -> Mutant:
        """Change arguments or, in one of four cases, damage a file."""
        if rng.random() < 1 / 4:
            return super().mutate(case_folder, rng)
        original = rng.choice(self.originals())
        shutil.copytree(original, case_folder)
        words = json.loads((case_folder / _WORDS_FILE).read_text())
        keeps = rng.random() < 0.6
        for _ in range(rng.choice((1, 1, 2, 3))):
            words = _other_value(words, rng) if keeps else _other_words(words, rng)
        words = [word for word in words if _is_harmless(word)]
        words += _FEW_STEPS if {"train", "finetune"} & set(words[:2]) else []
        (case_folder / _WORDS_FILE).write_text(json.dumps(words))
        return Mutant(original=original.name, change=json.dumps(words), keeps_structure=keeps)

    def is_damaged(self, path: Path) -> bool:
        """Only files that the arguments refer to, not the JSON file of the arguments."""
        return path.name not in (_WORDS_FILE, "images.npz", ".imagegpt.lock")

    def passes_first_parser(self, case_folder: Path) -> bool:
        """Known only after the command has run, see `open`."""
        return False

    def open(self, case_folder: Path) -> str:
        """Run the command in the folder and check how it exits."""
        words = json.loads((case_folder / _WORDS_FILE).read_text())
        os.chdir(case_folder)
        os.environ["HOME"] = str(case_folder)
        os.environ["XDG_CACHE_HOME"] = str(self.folder.parent / "commands-cache")
        code, out, err = run(words)
        os.chdir(case_folder.parent)
        self.parsed_while_open = "see imagegpt --help" not in err
        if code not in (0, 1, 2):
            raise WrongExitError(f"exit code {code}: {err[-500:]}")
        if "Traceback (most recent call last)" in out + err:
            raise WrongExitError(f"a traceback: {err[-2000:]}")
        if code in (0, 1):  # 1: some images were skipped
            return f"exit code {code}"
        *before, last = err.splitlines() or [""]
        if not last.startswith("error: ") and not (code == 2 and out and not err):  # help
            raise WrongExitError(
                f"exit code {code} without an error message at the end: {err[-500:]!r}, {out[-200:]!r}"
            )
        if any(line.startswith("error: ") for line in before):
            raise WrongExitError(f"several errors: {err[-500:]!r}")
        raise ValueError(last or "the help")


def run(words: list[str]) -> tuple[object, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    from imagegpt.cli import main

    streams = sys.stdout, sys.stderr
    files = [
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape", write_through=True) for _ in range(2)
    ]
    sys.stdout, sys.stderr = files
    try:
        main(words)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - whatever it is, a user would see its traceback
        code = traceback.format_exc()
    finally:
        sys.stdout, sys.stderr = streams
    out, err = (file.buffer.getvalue().decode("utf-8", "replace") for file in files)
    return code, out, err


def _other_value(words: list[str], rng: Random) -> list[str]:
    """Replace values of options and arguments, but not the names of options."""
    first = 2 if words[0] in ("palette", "convert", "export") else 1  # after the name of the command
    places = [
        case_folder for case_folder, word in enumerate(words) if not word.startswith("--") and case_folder >= first
    ]
    if not places:
        return [*words, rng.choice(ODD_WORDS)]
    case_folder = rng.choice(places)
    value = rng.choice(ODD_WORDS[:-9])
    if "=" in words[case_folder]:
        value = f"{rng.choice(_CHANGES)}={value}"
    return [*words[:case_folder], value, *words[case_folder + 1 :]]


def _other_words(words: list[str], rng: Random) -> list[str]:
    case_folder = rng.randrange(len(words) + 1)
    how = rng.choice(("remove", "insert", "twice", "option", "letters", "swap", "cut"))
    if how == "remove":
        return words[:case_folder] + words[case_folder + 1 :]
    if how == "insert":
        return [*words[:case_folder], rng.choice(ODD_WORDS), *words[case_folder:]]
    if how == "twice":
        return words[:case_folder] + words[case_folder - 1 :]
    if how == "option":
        others = COMMANDS[rng.choice(list(COMMANDS))].split()
        options = [number for number, word in enumerate(others) if word.startswith("--")]
        chosen = rng.choice(options) if options else 0
        return [*words[:case_folder], *others[chosen : chosen + 2], *words[case_folder:]]
    if how == "letters" and words:
        letters = list(words[case_folder - 1])
        letters.insert(rng.randrange(len(letters) + 1), rng.choice("=-.0x[é\n\0 "))
        return [*words[: case_folder - 1], "".join(letters), *words[case_folder:]] if case_folder else words
    if how == "swap" and len(words) > 1:
        one, other = rng.sample(range(len(words)), 2)
        words[one], words[other] = words[other], words[one]
        return words
    return words[:case_folder]


def _is_harmless(word: str) -> bool:
    """Whether a word, or its part after `=`, refers to nothing outside the folder and causes no long work."""
    if word.startswith(("training.num_steps=", "--base")):
        return word in ("--base", "training.num_steps=2")
    value = word.rpartition("=")[2]
    return value in _ABSOLUTE or not (value.startswith(("/", "../")) or "/.." in value)
