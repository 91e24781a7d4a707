"""How long does a forward pass take, compared with transformers' ImageGPT on the same weights?

    python benchmarks/forward.py                      # iGPT-S, 4 images, float32 and bfloat16
    python benchmarks/forward.py --size medium --batch 1 --repeats 3

Both models compute the logits of all positions, without gradients or cache: ours with its default attention, theirs
with the only one it has. Before the timing, the float32 logits are compared.
"""

import torch

from _common import both_models, finish, measure, parser, print_speedups, print_times

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", default="small", help="small, medium or large")
    options.add_argument("--batch", type=int, default=4, help="images")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    ours, theirs = both_models(options.size, options.device)
    config = ours.config
    ids = torch.randint(config.num_colors, (options.batch, config.n_positions), device=options.device)

    with torch.inference_mode():
        difference = (ours(ids, use_cache=False).logits - theirs(ids, use_cache=False).logits).abs().max().item()
        print(f"{options.size}, {options.batch} images, {options.device}; logits differ by {difference:.1e}")
        functions = {}
        for name, dtype in DTYPES.items():
            for library, model in (("transformers", theirs), ("imagegpt", ours)):
                copied = _copy(model, dtype)
                functions[f"{library} {name}"] = lambda copied=copied: copied(ids, use_cache=False).logits
        seconds = measure(functions, options.repeats)

    print_times(seconds)
    speedups = print_speedups(seconds)
    finish("forward", options, {"seconds": seconds, "speedups": speedups, "max_logit_difference": difference})


def _copy(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    copied = type(model)(model.config).eval().to(next(model.parameters()).device, dtype)
    copied.load_state_dict(model.state_dict())
    return copied


if __name__ == "__main__":
    main()
