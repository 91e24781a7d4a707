"""The arithmetic and the method of the benchmark; no test asserts a speed."""

import platform
import statistics

import pytest
import torch

from helpers import cache_bytes
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.benchmarking import BenchmarkOptions, implementations, memory, run, run_benchmark, timing
from imagegpt.benchmarking.implementations import Implementation
from imagegpt.model import cost
from imagegpt.model.cache import CACHE_ARGUMENT
from imagegpt.sampling import Sampler
from imagegpt.sampling.backends.cpp import CppBackend
from imagegpt.sampling.packed_linear import PackedLinear, stored_bytes

CONFIG = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}


@pytest.fixture
def tiny(tmp_path):
    """A folder with a tiny model."""
    folder = tmp_path / "tiny"
    ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def quick(monkeypatch):
    """Skip the slow measurements; return the arguments of memory measurements."""
    calls = []

    def fake_peak_bytes(*arguments):
        calls.append(arguments)
        return 1000

    monkeypatch.setattr(timing.ReadBandwidth.__init__, "__defaults__", (1 << 20,))
    monkeypatch.setattr(run, "peak_bytes_in_subprocess", fake_peak_bytes)
    monkeypatch.setattr(run, "_MIN_RUN_S", 0.0)
    return calls


@pytest.mark.slow
def test_the_numbers_are_consistent(tiny, quick):
    reports = []
    options = BenchmarkOptions(model=tiny, batches=[1, 3], precisions=["float32", "bfloat16"], num_pixels=6, repeats=3)
    result = run_benchmark(options, lambda *report: reports.append(report))
    assert (result.num_pixels, result.image_pixels, result.estimated_full_s) == (6, 16, None)
    assert (result.greedy_pixels_match, result.not_compared) == (True, None)
    expected = [
        ("imagegpt", "float32"),
        ("imagegpt", "bfloat16"),
        ("transformers", "float32"),
        ("transformers", "bfloat16"),
    ]
    rows = result.measurements
    assert [(one.library, one.precision, one.batch) for one in rows] == [
        (*pair, n) for n in (1, 3) for pair in expected
    ]
    rate = result.read_bytes_per_s["best"]
    assert rate >= result.read_bytes_per_s["median"] > 0
    for one in rows:
        assert len(one.seconds) == 3
        assert one.ms_per_pixel == pytest.approx(1e3 * statistics.median(one.seconds) / 6)
        assert one.images_per_s == pytest.approx(1e3 * one.batch / (16 * one.ms_per_pixel))
        implementation = Implementation(library=one.library, precision=one.precision)
        runner = implementation.load(tiny, "cpu")
        # The cache grows evenly: between pixels 0 and 5 it holds 2.5 on average.
        in_the_middle = [runner.step_bytes(one.batch, pixel) for pixel in (2, 3)]
        assert one.roofline_ms == pytest.approx(1e3 * sum(in_the_middle) / 2 / rate)
        assert one.bandwidth_fraction == pytest.approx(one.roofline_ms / one.ms_per_pixel)
        assert one.peak_bytes == 1000
        assert (one.decoder, one.speedup_over_sequential, one.pixels_per_pass, one.passes_by_length) == (
            "sequential",
            *3 * [None],
        )
    for ours, theirs in zip(rows[:2] + rows[4:6], [rows[2:4]] * 2 + [rows[6:]] * 2, strict=True):
        best = min(theirs, key=lambda one: one.ms_per_pixel)
        ratios = sorted(a / b for a, b in zip(best.seconds, ours.seconds, strict=True))
        assert ours.speedup == pytest.approx(dict(zip(["min", "median", "max"], ratios, strict=True)))
    assert [one.speedup for one in rows if one.library == "transformers"] == [None] * 4
    # (4 implementations and the bandwidth) x (a warm-up and 3 rounds), and 4 subprocesses; for two batch sizes.
    assert [done for _, done, _ in reports] == list(range(2 * (5 * 4 + 4)))
    assert {total for *_, total in reports} == {48}
    assert len(quick) == 8


def test_whole_images_are_sampled_unless_that_takes_long(tiny, quick, monkeypatch):
    options = BenchmarkOptions(model=tiny, repeats=1, compare=False)
    whole = run_benchmark(options)
    assert (whole.num_pixels, whole.estimated_full_s) == (16, None)
    assert (whole.greedy_pixels_match, whole.not_compared) == (None, None)
    assert [one.speedup for one in whole.measurements] == [None]
    monkeypatch.setattr(run, "_MAX_TOTAL_S", 0.0)
    part = run_benchmark(options)
    assert part.num_pixels == 8
    assert part.estimated_full_s > 0


def test_functions_alternate_after_a_warm_up():
    ran, reports = [], []
    seconds = timing.measure({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 2, reports.append)
    assert "".join(ran) == "ababab"
    assert reports[:3] == ["warming up: a", "warming up: b", "round 1 of 2: a"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_speedups_are_computed_within_a_round():
    seconds = {"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 1.0]}
    assert timing.speedup(seconds, "slow", "fast") == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_bandwidth_is_measured_several_times_per_run(monkeypatch):
    durations = iter([0.5, 0.25, 1.0, 2.0, 4.0])
    monkeypatch.setattr(timing, "time_call", lambda read: next(durations) if read() == 1000 else None)
    reader = timing.ReadBandwidth("cpu", 4000)
    reader()
    assert reader.bytes_per_s() == {"best": 16_000, "median": 4000}


def test_functions_can_have_another_warm_up_and_time_themselves():
    ran = []
    functions = {"a": lambda: ran.append("a") or timing.Seconds(7), "b": lambda: ran.append("b")}
    seconds = timing.measure(functions, 2, warm_ups={"b": lambda: ran.append("warm")})
    assert ran == ["a", "warm", "a", "b", "a", "b"]
    assert seconds["a"] == [7, 7]


def test_both_libraries_use_the_same_weights():
    model = implementations.load_or_init_model(ImageGPTConfig(**CONFIG), "cpu")
    theirs = Implementation(library="transformers", precision="float32").load(model, "cpu")
    implementation = Implementation(library="imagegpt", precision="float32")
    ours = implementation.load(model, "cpu")
    assert implementations.greedy_pixels_match([ours, theirs], 16)
    other = implementation.load(ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG)).eval(), "cpu")
    assert not implementations.greedy_pixels_match([other, theirs], 16)
    assert theirs(2, 5).shape == (2, 5)
    assert torch.equal(ours(2, 5), Sampler(model).generate(None, seeds=[0, 1], num_pixels=5))
    assert torch.equal(ours(2, 5, first_seed=1)[0], ours(2, 5)[1])


@pytest.mark.parametrize(("precision", "backend", "size", "scale_bytes"), [
    ("float32", "cpp", 4, 0), ("bfloat16", "cpp", 2, 0), ("int8", "cpp", 1, 4),
    ("float32", "torch", 4, 0), ("bfloat16", "torch", 2, 0), ("int8", "torch", 2, 0),
])  # fmt: skip
def test_weight_and_cache_bytes(precision, backend, size, scale_bytes):
    config = ImageGPTConfig(**{**CONFIG, "n_embd": 64})  # a multiple of the kernels' tiles, so without padding
    runner = Implementation(library="imagegpt", precision=precision, backend=backend).load(config, "cpu")
    num_vectors = 2 * config.n_layer * config.n_head
    pixel_bytes = cost.cache_bytes_per_pixel(config, size) + num_vectors * scale_bytes
    assert runner.cache_bytes(3, 5) == 3 * 5 * pixel_bytes
    packed = [module for module in runner.sampler.model.modules() if isinstance(module, PackedLinear)]
    saved = {"float32": 0, "bfloat16": 2, "int8": 3}[precision] * sum(one.weight.numel() for one in packed)
    scales = sum(one.scale.nbytes for one in packed if one.scale is not None)
    assert runner.weight_bytes == cost.weight_bytes(config) - saved + scales
    if precision != "int8":
        theirs = Implementation(library="transformers", precision=precision).load(config, "cpu")
        assert theirs.cache_bytes(3, 5) == 3 * 5 * cost.cache_bytes_per_pixel(config, size)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_roofline_counts_the_bytes_in_memory(precision, tmp_path, quick, monkeypatch):
    """Regression: int8 keys and values were counted with two bytes each; 64 of them take 68 bytes."""
    config = ImageGPTConfig(**{**CONFIG, "n_positions": 64, "n_embd": 32})
    ImageGPTForCausalImageModeling(config).save_pretrained(tmp_path)
    seen = []
    step = CppBackend.step

    def note(self, tokens, positions, rows, longest):
        if len(rows) == 3:
            seen.append((self, cache_bytes(self)))
        return step(self, tokens, positions, rows, longest)

    monkeypatch.setattr(CppBackend, "step", note)
    runners = []
    load = Implementation.load
    monkeypatch.setattr(Implementation, "load", lambda *given: runners.append(load(*given)) or runners[-1])
    options = BenchmarkOptions(
        model=str(tmp_path), batches=[3], precisions=[precision], repeats=1, compare=False, memory=False, backend="cpp"
    )
    result = run_benchmark(options)
    (one,), model = result.measurements, runners[0].sampler.model
    backend, num_bytes = seen[-1]
    assert str(backend._dtype) == f"torch.{precision}"
    weights = stored_bytes(model)
    read = weights - model.transformer.wte.weight.nbytes - model.transformer.wpe.weight.nbytes
    read += 3 * 2 * 32 * 4  # token and position embeddings, always in float32
    read += num_bytes * statistics.mean(range(64)) / 64
    assert one.roofline_ms == pytest.approx(1e3 * read / result.read_bytes_per_s["best"])
    assert one.bandwidth_fraction == pytest.approx(one.roofline_ms / one.ms_per_pixel)
    assert one.weight_and_cache_bytes == weights + num_bytes


def test_step_s_starts_with_a_filled_cache(monkeypatch):
    theirs = Implementation(library="transformers", precision="float32").load(ImageGPTConfig(**CONFIG), "cpu")
    fed = []

    def note(module, arguments, options):
        fed.append((arguments[0].shape, options[CACHE_ARGUMENT].get_seq_length()))

    theirs.model.transformer.register_forward_pre_hook(note, with_kwargs=True)
    assert theirs.step_s(3, 5, 2) > 0
    assert fed == [((3, 1), 5), ((3, 1), 6), ((3, 1), 7)]  # the first is not timed
    fed.clear()
    theirs.step_s(3, 0, 2)
    assert [before for _, before in fed] == [0, 1, 2]


def test_the_estimate_interpolates_between_spans():
    class FakeRunner:
        def __init__(self):
            self.starts = []

        def step_s(self, batch, start, num_steps):
            self.starts.append((batch, start, num_steps))
            return 1 + (start + (num_steps + 1) / 2) / 100  # linear, as in the length of the cache

    runner = FakeRunner()
    whole = run.estimate_from_spans(runner, 4, 101, 4)
    assert runner.starts == [(4, start, 4) for start in (0, 24, 48, 72, 96)]
    assert whole == pytest.approx(sum(1 + pixel / 100 for pixel in range(101)), rel=1e-3)
    assert isinstance(whole, timing.Seconds)


def test_short_runs_are_repeated_with_other_seeds(tiny, quick, monkeypatch):
    seeds = []
    original = implementations.ImageGPTRunner.__call__

    def note(self, batch, num_pixels, *, first_seed=0, greedy=False):
        seeds.append(first_seed)
        return original(self, batch, num_pixels, first_seed=first_seed, greedy=greedy)

    monkeypatch.setattr(implementations.ImageGPTRunner, "__call__", note)
    monkeypatch.setattr(run, "_MIN_RUN_S", 0.2)
    run_benchmark(BenchmarkOptions(model=tiny, batches=[2], num_pixels=4, repeats=1, compare=False))
    first = seeds.index(run._SEEDS_PER_RUN)
    assert len(seeds) > first + 2
    assert seeds[first:] == [run._SEEDS_PER_RUN + 2 * turn for turn in range(len(seeds) - first)]


def test_both_decoders_are_compared(tiny, quick):
    decoders = ["sequential", "parallel"]
    options = BenchmarkOptions(model=tiny, decoders=decoders, num_pixels=16, repeats=2, compare=False, memory=False)
    result = run_benchmark(options)
    assert result.decoders_match is True
    sequential, parallel = result.measurements
    assert (sequential.decoder, parallel.decoder) == ("sequential", "parallel")
    assert quick == []
    assert (sequential.peak_bytes, sequential.speedup_over_sequential, sequential.pixels_per_pass) == (None, None, None)
    ratios = sorted(a / b for a, b in zip(sequential.seconds, parallel.seconds, strict=True))
    assert parallel.speedup_over_sequential == pytest.approx(
        {"median": sum(ratios) / 2, "min": ratios[0], "max": ratios[1]}
    )
    # Two timed images of 16 pixels, without the warm-up.
    assert parallel.pixels_per_pass == pytest.approx(32 / sum(parallel.passes_by_length.values()))


def test_different_pixels_of_the_decoders_are_reported(tiny, quick, monkeypatch):
    original = implementations.ImageGPTRunner.__call__

    def wrong(self, *arguments, **options):
        return original(self, *arguments, **options) + (self.sampler.plan.decoder == "parallel")

    monkeypatch.setattr(implementations.ImageGPTRunner, "__call__", wrong)
    options = BenchmarkOptions(model=tiny, decoders=["sequential", "parallel"], num_pixels=4, repeats=1, compare=False)
    assert run_benchmark(options).decoders_match is False


def test_the_reference_can_be_measured_in_spans(tiny, quick, monkeypatch):
    monkeypatch.setattr(implementations.TransformersRunner, "step_s", lambda *_: 0.5)
    options = BenchmarkOptions(
        model=tiny, precisions=["int8"], num_pixels=16, repeats=1, reference_precisions=["float32"], reference_pixels=3
    )
    result = run_benchmark(options)
    assert [one.seconds for one in result.measurements if one.library == "transformers"] == [[8.0]]
    assert result.greedy_pixels_match is True  # with a float32 sampler that is not measured
    with pytest.raises(ValueError, match="reference_pixels is 16: it must be less than the 16 pixels of an image"):
        run_benchmark(BenchmarkOptions(model=tiny, reference_pixels=16))


def test_transformers_samples_from_all_colours():
    config = ImageGPTConfig(**{**CONFIG, "vocab_size": 201})
    model = implementations.load_or_init_model(config, "cpu")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all colours are equally likely
    runner = Implementation(library="transformers", precision="float32").load(model, "cpu")
    assert len(torch.unique(runner(64, 16))) > 150


def test_random_weights_are_reproducible_and_do_not_change_the_global_rng():
    config = ImageGPTConfig(**CONFIG)
    state = torch.get_rng_state()
    first, second = (implementations.load_or_init_model(config, "cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.training
    assert first.dtype == torch.float32
    assert implementations.resolve_config("medium").n_embd == 1024


@pytest.mark.parametrize("module", ["transformers.models.no_imagegpt", "transformers.models.gpt2"])
def test_without_the_reference_only_ours_is_measured(tiny, quick, monkeypatch, module):
    monkeypatch.setattr(implementations, "_REFERENCE", module)
    result = run_benchmark(BenchmarkOptions(model=tiny, num_pixels=2, repeats=1))
    assert result.not_compared == "not compared: this version of transformers has no ImageGPT"
    assert [one.library for one in result.measurements] == ["imagegpt"]


def test_a_model_without_biases_is_not_compared(tmp_path, quick):
    ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG, use_bias=False)).save_pretrained(tmp_path)
    result = run_benchmark(BenchmarkOptions(model=str(tmp_path), num_pixels=2, repeats=1))
    assert result.not_compared == "not compared: the weights of this model do not fit transformers' ImageGPT"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batches": [1, 0]}, "one of batches is 0: it must be an integer from 1 to 65,536"),
        ({"batches": []}, r"batches is \[\]: give at least one value, without repetitions"),
        ({"batches": [2, 2]}, r"batches is \[2, 2\]: give at least one value, without repetitions"),
        ({"repeats": 0}, "repeats is 0"),
        ({"num_pixels": True}, "num_pixels is True"),
        ({"reference_pixels": 0}, "reference_pixels is 0"),
        ({"decoders": ["both"]}, "decoders contains 'both': choose from sequential, parallel"),
        ({"reference_precisions": ["int8"]}, "reference_precisions contains 'int8': choose from float32, bfloat16"),
        ({"precisions": ["float16"]}, "precisions contains 'float16': choose from float32, bfloat16, int8"),
    ],
)
def test_invalid_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkOptions(model="digits", **fields)


def test_unsuitable_models_and_too_many_pixels_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="num_pixels is 17: this model's images have 16 pixels"):
        run_benchmark(BenchmarkOptions(model=tiny, num_pixels=17))
    with pytest.raises(ValueError, match="backend is 'gpu': choose one of auto, cpp, torch, cuda"):
        run_benchmark(BenchmarkOptions(model=tiny, backend="gpu"))
    bert = ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG, is_causal=False))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bidirectional"):
        run_benchmark(BenchmarkOptions(model=str(tmp_path / "bert")))
    ImageGPTForImageClassification(ImageGPTConfig(**CONFIG)).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="do not match"):
        run_benchmark(BenchmarkOptions(model=str(tmp_path / "classifier")))


def test_the_subprocess_measures_what_its_model_adds(tmp_path):
    # 50 MB of weights, nearly all in the MLP, and a negligible cache.
    config = ImageGPTConfig(**{**CONFIG, "n_layer": 1, "n_inner": 380_000})
    ImageGPTForCausalImageModeling(config).save_pretrained(tmp_path)
    # Not ours, which pads this matrix to tiles and so doubles its size.
    implementation = Implementation(library="transformers", precision="float32")
    peak = memory.peak_bytes_in_subprocess(implementation, str(tmp_path), "cpu", 1, 3)
    weights = cost.weight_bytes(config)
    assert 0.9 * weights < peak < 1.5 * weights
    assert memory.memory_in_use("cpu") <= memory.memory_in_use("cpu", peak=True)


@pytest.mark.slow
def test_a_failing_subprocess_is_an_error(tmp_path):
    implementation = Implementation(library="imagegpt", precision="float32")
    with pytest.raises(RuntimeError, match="there is no folder"):
        memory.peak_bytes_in_subprocess(implementation, str(tmp_path / "nothing"), "cpu", 1, 2)


def test_the_environment_has_versions_and_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "bench", "--batch", "2"])
    facts = timing.environment("imagegpt")
    assert facts["command"] == "imagegpt bench --batch 2"
    assert (facts["torch"], facts["threads"]) == (torch.__version__, torch.get_num_threads())
    assert facts["libc"] == " ".join(platform.libc_ver()).strip()
