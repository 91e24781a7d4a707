"""Many processes compute what one would: real processes, started by torchrun, that talk over gloo.

Without dropout, which every process draws for itself.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers import largest_difference
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.training.recipe_io import read_recipe
from imagegpt.training.run import Run
from stripes import ALONE

RECIPE = """\
model: {n_layer: 2, n_embd: 32, n_head: 4}
data: {train: digits}
training: {num_steps: 50, batch_size: 8, warmup_steps: 5, weight_decay: 0.1, ema_decay: 0.99, precision: float32}
monitoring: {validate_every: 25, checkpoint_every: 10, samples: 0}
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """The run of a single process."""
    out = tmp_path_factory.mktemp("alone") / "m"
    assert Run(read_recipe(recipe), out, ALONE).train() == "completed"
    return out


def start(num, *arguments, options=(), module=("-m", "imagegpt", "train")):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}", *options]
    return subprocess.Popen(
        [*launcher, *module, *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    told = process.communicate(timeout=280)[0]
    assert process.returncode == 0, told
    return told


def train(num, recipe, out, *changes, options=()):
    words = [word for change in changes for word in ("--set", change)]
    return finish(start(num, recipe, "--out", out, *words, options=options))


def losses(out):
    """Of every step, and of every validation."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 51))
    return [line["metrics"]["loss"] for line in lines], [
        line["validation"]["loss"] for line in lines if "validation" in line
    ]


def assert_alike(out, alone):
    """The same curve, and the same model."""
    for mine, expected in zip(losses(out), losses(alone), strict=True):
        assert mine == pytest.approx(expected, abs=1e-4)
    weights, expected = load_file(out / "model.safetensors"), load_file(alone / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert max(largest_difference(weights[name], expected[name]) for name in expected) < 1e-5
    assert (out / "config.json").read_text() == (alone / "config.json").read_text()
    ImageGPTForCausalImageModeling.from_pretrained(out)


def workers_of(process):
    """The processes that torchrun has started and that are alive."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def wait_for(process, path):
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)


@pytest.mark.slow
def test_two_copies_are_like_one(recipe, alone, tmp_path):
    told = train(2, recipe, tmp_path / "m")
    assert_alike(tmp_path / "m", alone)
    assert told.count("Next: imagegpt sample") == told.count("step 25/50") == 1  # one of them talks
    assert (tmp_path / "m" / "README.md").is_file()


def test_accumulated_gradients_are_like_one_batch(alone, recipe, tmp_path):
    Run(read_recipe(recipe, ["training.micro_batch_size=2"]), tmp_path / "m", ALONE).train()
    assert_alike(tmp_path / "m", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num", "changes"),
    [
        (2, ["training.parallel=fsdp"]),
        (4, ["training.parallel=fsdp"]),
        (2, ["training.micro_batch_size=2"]),
        (2, ["training.micro_batch_size=2", "training.parallel=fsdp"]),
        (2, ["training.gradient_checkpointing=true", "training.parallel=fsdp"]),
    ],
)
def test_many_processes_are_like_one(num, changes, recipe, alone, tmp_path):
    train(num, recipe, tmp_path / "m", *changes)
    assert_alike(tmp_path / "m", alone)


SHARDS = """
import hashlib, json, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from imagegpt.training import run as run_module
from imagegpt.training.recipe_io import read_recipe
from imagegpt.training.distributed import distributed_context
from imagegpt.training.parallelism import full_tensor

built = []

def build_model(*arguments, **options):
    module = original(*arguments, **options)
    built.append({weight.device.type for weight in module.parameters()})
    return module

original, run_module.build_model = run_module.build_model, build_model
with distributed_context("cpu") as context:
    recipe = read_recipe(Path(sys.argv[1]), ["training.parallel=fsdp", *sys.argv[3:]])
    run = run_module.Run(recipe, Path(sys.argv[2]), context)
    assert built == [{"cpu"} if context.is_main else {"meta"}], built
    state, digest = run._trainer._optimizers[0].state, hashlib.sha256()
    shapes = {}
    for name, weight in run._module.model.named_parameters():
        digest.update(name.encode() + full_tensor(weight.detach()).numpy().tobytes())
        several = [weight, run._trainer.ema.weights[name], state[weight]["exp_avg"], state[weight]["exp_avg_sq"]]
        assert context.world_size == 1 or all(isinstance(one, DTensor) for one in several), name
        if context.world_size > 1:
            shapes[name] = [list(weight.shape), *(list(one.to_local().shape) for one in several)]
    shapes = context.all_gather(shapes)
    if context.is_main:
        print("SHARDS", json.dumps(shapes))
        print("DIGEST", digest.hexdigest())
"""
PRETRAINED = ["n_layer=null", "n_embd=null", "n_head=null", "pretrained=digits"]


def results(output):
    """What the script above prints: the shapes of the shards by rank, and a hash of the weights."""
    lines = dict(line.split(" ", 1) for line in output.splitlines() if line.startswith(("SHARDS ", "DIGEST ")))
    return json.loads(lines["SHARDS"]), lines["DIGEST"]


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 4])
def test_weights_moments_and_averages_are_really_sharded(num, recipe, tmp_path):
    script = tmp_path / "shards.py"
    script.write_text(SHARDS)
    ranks, _ = results(finish(start(num, script, recipe, tmp_path / "m", module=())))
    assert len(ranks) == num
    for name, (whole, *_) in ranks[0].items():
        parts = [rank[name][1:] for rank in ranks]
        for kind in range(4):  # weight, average, both moments
            sizes = [math.prod(part[kind]) for part in parts]
            assert sum(sizes) == math.prod(whole)
            if whole[0] % num == 0:
                assert sizes == [math.prod(whole) // num] * num
    assert sum(math.prod(shapes[1]) for shapes in ranks[0].values()) < 1.1 / num * sum(
        math.prod(shapes[0]) for shapes in ranks[0].values()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["model.embedding_init=sinusoidal"],
        [*(f"model.{change}" for change in PRETRAINED), "objective.name=joint", "model.resid_pdrop=0.1"],
    ],
    ids=["fresh", "pretrained"],
)
def test_sharded_weights_begin_as_those_of_one_process(changes, recipe, tmp_path):
    """All processes but the first build the model on the meta device, and receive their shards."""
    script = tmp_path / "shards.py"
    script.write_text(SHARDS)
    digests = [
        results(finish(start(num, script, recipe, tmp_path / f"m{num}", *changes, module=())))[1] for num in (1, 2)
    ]
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_save_and_one_or_four_go_on(parallel, recipe, alone, tmp_path):
    process = start(2, recipe, "--out", tmp_path / "m", "--set", f"training.parallel={parallel}")
    wait_for(process, tmp_path / "m" / "checkpoints" / "step-00000020")
    for worker in [process.pid, *workers_of(process)]:
        os.kill(worker, signal.SIGKILL)
    process.communicate()
    for num in (1, 4):
        out = shutil.copytree(tmp_path / "m", tmp_path / f"m{num}")
        told = train(num, recipe, out, f"training.parallel={parallel}")
        assert 20 <= int(told.partition("resuming after step ")[2].split()[0]) < 50
        assert_alike(out, alone)


@pytest.mark.slow
def test_the_run_goes_on_when_a_process_dies(recipe, alone, tmp_path):
    """With --force, too, which must not begin anew after the death."""
    out = tmp_path / "m"
    process = start(2, recipe, "--out", out, "--force", options=["--max-restarts=2"])
    wait_for(process, out / "checkpoints" / "step-00000010")
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    told = finish(process)
    assert "resuming after step" in told
    assert_alike(out, alone)


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_in_all_processes(recipe, alone, tmp_path):
    """Each gets it at another moment; they agree on the step after which they stop."""
    out = tmp_path / "m"
    process = start(2, recipe, "--out", out, "--set", "training.parallel=fsdp")
    wait_for(process, out / "checkpoints" / "step-00000010")
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=100)[0]
    step = int(told.partition("stopped after step ")[2].partition(";")[0])
    assert 10 <= step < 50
    assert f"resuming after step {step}" in train(2, recipe, out, "training.parallel=fsdp")
    assert_alike(out, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num", "changes", "message"),
    [
        (
            3,
            [],
            "error: training.batch_size is 8, which cannot be divided among 3 processes: choose a multiple of the",
        ),
        (
            2,
            ["training.micro_batch_size=8"],
            "error: training.micro_batch_size is 8, and each process has 4 of training.batch_size = 8 images: choose",
        ),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(num, changes, message, recipe, tmp_path):
    words = [word for change in changes for word in ("--set", change)]
    process = start(num, recipe, "--out", tmp_path / "m", *words)
    told = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert message in told
    assert not (tmp_path / "m").exists()
