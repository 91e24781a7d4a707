"""How long does an image take, beside transformers' ImageGPT and its `generate` on the same weights?

    python benchmarks/generate.py                          # iGPT-S, 1 image, the first 256 pixels, float32
    python benchmarks/generate.py --pixels 1024 --repeats 3  # whole images
    python benchmarks/generate.py --batch 8

All draw from the full distribution (temperature 1, top_k=0 where the default is 50); transformers uses its dynamic
cache. Before anything is timed, both make the same greedy pixels.
"""

import torch

from _common import both_models, finish, measure, parser, print_ratio, print_times
from imagegpt.benchmarking.timing import ratio
from imagegpt.sampling import Sampler, SamplingRules


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", default="small", help="small, medium or large")
    options.add_argument("--batch", type=int, default=1, help="images made at once")
    options.add_argument("--pixels", type=int, default=256, help="pixels of each image; all are 1024")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    ours, theirs = both_models(options.size, options.device)
    sampler = Sampler(ours)
    sos = torch.full((options.batch, 1), ours.config.sos_token_id, device=options.device)
    seeds = range(options.batch)

    def transformers_generate(num_pixels: int = options.pixels, **how: int) -> torch.Tensor:
        return theirs.generate(sos, max_new_tokens=num_pixels, **how)[:, 1:]

    def imagegpt_generate() -> torch.Tensor:
        return ours.generate(sos, max_new_tokens=options.pixels, do_sample=True, top_k=0)[:, 1:]

    greedy = sampler.generate(None, seeds=seeds, rules=SamplingRules(temperature=0.0), num_pixels=32)
    same = torch.equal(greedy, transformers_generate(32, do_sample=False))
    what = f"{options.size}, {options.batch} x {options.pixels} pixels, {options.device}"
    print(f"{what}; same greedy pixels: {same}")
    seconds = measure(
        {
            "transformers generate": lambda: transformers_generate(do_sample=True, top_k=0),
            "imagegpt generate": imagegpt_generate,
            "imagegpt Sampler": lambda: sampler.generate(None, seeds=seeds, num_pixels=options.pixels),
        },
        options.repeats,
    )
    print_times(seconds, unit="ms a pixel", scale=1000 / options.pixels)
    results = {
        "sampler": ratio(seconds, "transformers generate", "imagegpt Sampler"),
        "generate": ratio(seconds, "transformers generate", "imagegpt generate"),
    }
    print_ratio("Sampler", results["sampler"])
    print_ratio("generate()", results["generate"])
    finish("generate", options, {"seconds": seconds, "ratios": results, "same_greedy_pixels": same})


if __name__ == "__main__":
    main()
