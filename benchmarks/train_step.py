"""How long does a training step take, and with how much memory, compared with transformers on the same weights?

    python benchmarks/train_step.py                       # iGPT-S, 2 images of 1,024 pixels
    python benchmarks/train_step.py --precisions float32  # for CPUs that are slow in bfloat16
    python benchmarks/train_step.py --size medium --batch 1 --repeats 3 --no-memory

A step is that of `imagegpt train`: forward, the loss over all pixels, backward, clipping, AdamW. Both models train with
torch's autocast for bfloat16, without dropout, and with the same loss and optimiser; theirs with the only attention it
has. Before the timing, their gradients are compared.

Memory is the peak of a subprocess, minus its memory before the model was built: weights, gradients, AdamW's moments and
activations.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from _common import ReferenceConfig, ReferenceModel, both_models, finish, measure, parser, print_speedups, print_times
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.benchmarking.memory import memory_in_use
from imagegpt.data.batch import Batch
from imagegpt.model.losses import with_start_token
from imagegpt.training.optimizers import build_optimizers
from imagegpt.training.parallelism import set_checkpointing
from imagegpt.training.recipe import TrainingRecipe

PRECISIONS = ("float32", "bfloat16")
RECIPE = TrainingRecipe(num_steps=1000)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", default="small", help="small, medium or large")
    options.add_argument("--batch", type=int, default=2, help="images")
    options.add_argument("--precisions", default=",".join(PRECISIONS), help="some of float32,bfloat16")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--no-memory", action="store_true", help="do not measure memory")
    options.add_argument("--alone", help="print the memory of one implementation; used by the benchmark itself")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        print(json.dumps(_memory_of(options)))
        return
    torch.manual_seed(0)
    models = dict(zip(("imagegpt", "transformers"), both_models(options.size, options.device), strict=True))
    for model in models.values():
        _prepare(model)
    batch = _batch(options, models["imagegpt"])
    difference = _compare(models, batch)
    precisions = options.precisions.split(",")
    functions = {f"{library} {name}": _step(models[library], name, batch) for name in precisions for library in models}
    functions |= {
        f"imagegpt {name} recomputed": _step(models["imagegpt"], name, batch, recomputed=True) for name in precisions
    }
    seconds = measure(functions, options.repeats)
    print(f"{options.size}, {options.batch} images, {options.device}")
    print(f"relative difference of the gradients: {difference:.1e}")
    print_times(seconds)
    speedups = print_speedups(seconds)
    memory = {} if options.no_memory else _print_memory(options, list(functions))
    finish("train_step", options, {"seconds": seconds, "speedups": speedups, "bytes": memory})


def _batch(options: argparse.Namespace, model: nn.Module) -> Batch:
    config = model.config
    num_colors = config.vocab_size - 1  # transformers has no property for it
    return Batch(ids=torch.randint(num_colors, (options.batch, config.n_positions), device=options.device))


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    fed = with_start_token(batch.ids, model.config.vocab_size - 1)
    logits = model(fed, use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.ids.flatten())


def _step(model: nn.Module, precision: str, batch: Batch, recomputed: bool = False) -> Callable[[], float]:
    """A function that runs one step. It creates the optimisers on the first call, because their state takes memory."""
    optimizers = None

    def step() -> float:
        nonlocal optimizers
        optimizers = optimizers or build_optimizers(model, RECIPE)
        if isinstance(model, ImageGPTForCausalImageModeling):
            set_checkpointing(model.transformer, recomputed)
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = _loss(model, batch)
        loss.backward()
        clip_grad_norm_(model.parameters(), RECIPE.max_grad_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-6  # so that both models stay the same
            optimizer.step()
        return loss.item()

    return step


def _prepare(model: nn.Module) -> None:
    """Disable dropout; use the attention of `imagegpt train` in our model."""
    _without_dropout(model)
    if isinstance(model, ImageGPTForCausalImageModeling):
        model.set_attn_implementation(RECIPE.attention)


def _without_dropout(model: nn.Module) -> None:
    model.train()
    model.config.attn_pdrop = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _compare(models: dict[str, nn.Module], batch: Batch) -> float:
    """The relative difference of both models' gradients, in float32."""
    gradients = []
    for model in models.values():
        _loss(model, batch).backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
        model.zero_grad()
    ours, theirs = gradients
    apart = sum((ours[name] - theirs[name]).double().square().sum() for name in ours).sqrt()
    return (apart / sum(one.double().square().sum() for one in theirs.values()).sqrt()).item()


def _print_memory(options: argparse.Namespace, names: list[str]) -> dict[str, int]:
    peaks = {}
    for name in names:
        print(f"memory of {name}", file=sys.stderr)
        words = ["--size", options.size, "--batch", options.batch, "--device", options.device]
        words += ["--threads", options.threads, "--alone", name]
        command = [sys.executable, __file__, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:<22} {peaks[name] / 1e6:9,.0f} MB peak")
    for precision in options.precisions.split(","):
        theirs = peaks[f"transformers {precision}"]
        fractions = [
            f"{peaks[name] / theirs:.0%} ({name})" for name in names if name.startswith(f"imagegpt {precision}")
        ]
        print(f"{precision}, our memory relative to theirs: {', '.join(fractions)}")
    return peaks


def _memory_of(options: argparse.Namespace) -> int:
    library, precision, *recomputed = options.alone.split()
    before = memory_in_use(options.device) or 0
    config = ImageGPTConfig.from_size(options.size)
    if library == "imagegpt":
        model = ImageGPTForCausalImageModeling(config)
    else:
        model = ReferenceModel(ReferenceConfig(**config.to_dict()))
    _prepare(model.to(options.device))
    step = _step(model, precision, _batch(options, model), bool(recomputed))
    step()
    step()
    return (memory_in_use(options.device, peak=True) or 0) - before


if __name__ == "__main__":
    main()
