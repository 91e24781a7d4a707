"""The benchmark's arithmetic and fairness; how fast anything is, is not asserted."""

import platform
import statistics

import pytest
import torch

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.benchmarking import BenchOptions, implementations, memory, run, run_benchmark, timing
from imagegpt.model import cost
from imagegpt.model.cache_names import CACHE
from imagegpt.sampling import Sampler
from imagegpt.sampling.backends.cpp import CppStep
from imagegpt.sampling.packed_linear import PackedLinear, stored_bytes

CONFIG = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}


@pytest.fixture
def tiny(tmp_path):
    """A folder with weights, which is all a benchmark needs."""
    folder = tmp_path / "tiny"
    ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def quick(monkeypatch):
    """Memory is read a megabyte at a time, nothing is drawn over and over, what processes take is told at once: who
    asked is kept.
    """
    asked = []

    def told(*arguments):
        asked.append(arguments)
        return 1000

    monkeypatch.setattr(timing.MemoryReader.__init__, "__defaults__", (1 << 20,))
    monkeypatch.setattr(run, "bytes_in_a_process", told)
    monkeypatch.setattr(run, "_LEAST_S", 0.0)
    return asked


def test_the_numbers_fit_each_other(tiny, quick):
    told = []
    options = BenchOptions(model=tiny, batches=[1, 3], precisions=["float32", "bfloat16"], num_pixels=6, repeats=3)
    result = run_benchmark(options, lambda *what: told.append(what))
    assert (result.num_pixels, result.image_pixels, result.whole_s) == (6, 16, None)
    assert (result.same_greedy_pixels, result.not_compared) == (True, None)
    who = [("imagegpt", "float32"), ("imagegpt", "bfloat16"), ("transformers", "float32"), ("transformers", "bfloat16")]
    rows = result.measurements
    assert [(one.who, one.precision, one.batch) for one in rows] == [(*pair, n) for n in (1, 3) for pair in who]
    rate = result.read_bytes_per_s["best"]
    assert rate >= result.read_bytes_per_s["median"] > 0
    for one in rows:
        assert len(one.seconds) == 3
        assert one.ms_per_pixel == pytest.approx(1e3 * statistics.median(one.seconds) / 6)
        assert one.images_per_s == pytest.approx(1e3 * one.batch / (16 * one.ms_per_pixel))
        contestant = implementations.Contestant(who=one.who, precision=one.precision)
        draw = contestant.make(tiny, "cpu")
        # The cache grows evenly: between pixels 0 and 5 it holds 2.5 on average.
        in_the_middle = [draw.step_bytes(one.batch, pixel) for pixel in (2, 3)]
        assert one.floor_ms == pytest.approx(1e3 * sum(in_the_middle) / 2 / rate)
        assert one.share == pytest.approx(one.floor_ms / one.ms_per_pixel)
        assert one.peak_bytes == 1000
        assert (one.decoder, one.over_sequential, one.pixels_per_pass, one.run_lengths) == ("sequential", *3 * [None])
    for ours, theirs in zip(rows[:2] + rows[4:6], [rows[2:4]] * 2 + [rows[6:]] * 2, strict=True):
        best = min(theirs, key=lambda one: one.ms_per_pixel)
        ratios = sorted(a / b for a, b in zip(best.seconds, ours.seconds, strict=True))
        assert ours.speedup == pytest.approx(dict(zip(["min", "median", "max"], ratios, strict=True)))
    assert [one.speedup for one in rows if one.who == "transformers"] == [None] * 4
    # (4 contestants and the reading of memory) x (a warm-up and 3 rounds), and 4 processes; for two batch sizes.
    assert [done for _, done, _ in told] == list(range(2 * (5 * 4 + 4)))
    assert {total for *_, total in told} == {48}
    assert len(quick) == 8


def test_whole_images_are_drawn_unless_that_takes_long(tiny, quick, monkeypatch):
    options = BenchOptions(model=tiny, repeats=1, compare=False)
    whole = run_benchmark(options)
    assert (whole.num_pixels, whole.whole_s) == (16, None)
    assert (whole.same_greedy_pixels, whole.not_compared) == (None, None)
    assert [one.speedup for one in whole.measurements] == [None]
    monkeypatch.setattr(run, "_BUDGET_S", 0.0)
    part = run_benchmark(options)
    assert part.num_pixels == 8
    assert part.whole_s > 0


def test_contestants_take_turns_after_a_warm_up():
    ran, told = [], []
    seconds = timing.measure({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 2, told.append)
    assert "".join(ran) == "ababab"
    assert told[:3] == ["warming up: a", "warming up: b", "round 1 of 2: a"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_ratios_are_taken_within_a_round():
    seconds = {"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 1.0]}
    assert timing.ratio(seconds, "slow", "fast") == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_memory_is_read_several_times_a_run(monkeypatch):
    durations = iter([0.5, 0.25, 1.0, 2.0, 4.0])
    monkeypatch.setattr(timing, "seconds_of", lambda read: next(durations) if read() == 1000 else None)
    reader = timing.MemoryReader("cpu", 4000)
    reader()
    assert reader.bytes_per_s() == {"best": 16_000, "median": 4000}


def test_a_contestant_may_warm_up_in_another_way_and_measure_its_own_time():
    ran = []
    contestants_of = {"a": lambda: ran.append("a") or timing.Seconds(7), "b": lambda: ran.append("b")}
    seconds = timing.measure(contestants_of, 2, warm_ups={"b": lambda: ran.append("warm")})
    assert ran == ["a", "warm", "a", "b", "a", "b"]
    assert seconds["a"] == [7, 7]


def test_both_draw_from_the_same_weights_and_all_colours():
    model = implementations.model_of(ImageGPTConfig(**CONFIG), torch.float32, "cpu")
    theirs = implementations.Contestant(who="transformers", precision="float32").make(model, "cpu")
    contestant = implementations.Contestant(who="imagegpt", precision="float32")
    ours = contestant.make(model, "cpu")
    assert implementations.same_greedy_pixels([ours, theirs], 16)
    other = contestant.make(ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG)).eval(), "cpu")
    assert not implementations.same_greedy_pixels([other, theirs], 16)
    assert theirs(2, 5).shape == (2, 5)
    assert torch.equal(ours(2, 5), Sampler(model).generate(None, seeds=[0, 1], num_pixels=5))
    assert torch.equal(ours(2, 5, first_seed=1)[0], ours(2, 5)[1])


@pytest.mark.parametrize(("precision", "backend", "size", "scale_bytes"), [
    ("float32", "cpp", 4, 0), ("bfloat16", "cpp", 2, 0), ("int8", "cpp", 1, 4),
    ("float32", "torch", 4, 0), ("bfloat16", "torch", 2, 0), ("int8", "torch", 2, 0),
])  # fmt: skip
def test_what_must_be_held(precision, backend, size, scale_bytes):
    config = ImageGPTConfig(**{**CONFIG, "n_embd": 64})  # which fills the tiles of the C++ kernels
    draw = implementations.Contestant(who="imagegpt", precision=precision, backend=backend).make(config, "cpu")
    assert draw.cache_bytes(3, 5) == 3 * 5 * cost.cache_bytes_per_pixel(config, size, scale_bytes)
    packed = [module for module in draw.sampler.model.modules() if isinstance(module, PackedLinear)]
    saved = {"float32": 0, "bfloat16": 2, "int8": 3}[precision] * sum(one.weight.numel() for one in packed)
    scales = sum(one.scale.nbytes for one in packed if one.scale is not None)
    assert draw.weight_bytes == cost.weight_bytes(config) - saved + scales
    if precision != "int8":
        theirs = implementations.Contestant(who="transformers", precision=precision).make(config, "cpu")
        assert theirs.cache_bytes(3, 5) == 3 * 5 * cost.cache_bytes_per_pixel(config, size)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_share_counts_the_bytes_that_are_there(precision, tmp_path, quick, monkeypatch):
    """Keys and values of int8 were counted with two bytes, where the cache stores 68 for 64 of them."""
    config = ImageGPTConfig(**{**CONFIG, "n_positions": 64, "n_embd": 32})
    ImageGPTForCausalImageModeling(config).save_pretrained(tmp_path)
    seen = []
    step = CppStep.step

    def note(self, tokens, positions, rows, longest):
        if len(rows) == 3:
            seen.append((self, self.cache_bytes))
        return step(self, tokens, positions, rows, longest)

    monkeypatch.setattr(CppStep, "step", note)
    draws = []
    make = implementations.Contestant.make
    monkeypatch.setattr(implementations.Contestant, "make", lambda *given: draws.append(make(*given)) or draws[-1])
    options = BenchOptions(
        model=str(tmp_path), batches=[3], precisions=[precision], repeats=1, compare=False, memory=False, backend="cpp"
    )
    result = run_benchmark(options)
    (one,), model = result.measurements, draws[0].sampler.model
    backend, cache_bytes = seen[-1]
    assert str(backend._dtype) == f"torch.{precision}"
    weights = stored_bytes(model)
    read = weights - model.transformer.wte.weight.nbytes - model.transformer.wpe.weight.nbytes
    read += 3 * 2 * 32 * 4  # embeddings of the pixel and of its place, in float32 always
    read += cache_bytes * statistics.mean(range(64)) / 64
    assert one.floor_ms == pytest.approx(1e3 * read / result.read_bytes_per_s["best"])
    assert one.share == pytest.approx(one.floor_ms / one.ms_per_pixel)
    assert one.held_bytes == weights + cache_bytes


def test_a_stretch_of_theirs_begins_behind_a_cache_that_is_full(monkeypatch):
    theirs = implementations.Contestant(who="transformers", precision="float32").make(ImageGPTConfig(**CONFIG), "cpu")
    fed = []

    def note(module, arguments, options):
        fed.append((arguments[0].shape, options[CACHE].get_seq_length()))

    theirs.model.transformer.register_forward_pre_hook(note, with_kwargs=True)
    assert theirs.step_s(3, 5, 2) > 0
    assert fed == [((3, 1), 5), ((3, 1), 6), ((3, 1), 7)]  # the first is not timed
    fed.clear()
    theirs.step_s(3, 0, 2)
    assert [before for _, before in fed] == [0, 1, 2]


def test_stretches_are_interpolated():
    class Draws:
        def __init__(self):
            self.starts = []

        def step_s(self, batch, start, num_steps):
            self.starts.append((batch, start, num_steps))
            return 1 + (start + (num_steps + 1) / 2) / 100  # grows evenly, as a step does with what is cached

    draws = Draws()
    whole = run.by_stretches(draws, 4, 101, 4)
    assert draws.starts == [(4, start, 4) for start in (0, 24, 48, 72, 96)]
    assert whole == pytest.approx(sum(1 + pixel / 100 for pixel in range(101)), rel=1e-3)
    assert isinstance(whole, timing.Seconds)


def test_small_images_are_drawn_again_and_again_with_other_seeds(tiny, quick, monkeypatch):
    seeds = []
    original = implementations.OurDraw.__call__

    def note(self, batch, num_pixels, *, first_seed=0, greedy=False):
        seeds.append(first_seed)
        return original(self, batch, num_pixels, first_seed=first_seed, greedy=greedy)

    monkeypatch.setattr(implementations.OurDraw, "__call__", note)
    monkeypatch.setattr(run, "_LEAST_S", 0.2)
    run_benchmark(BenchOptions(model=tiny, batches=[2], num_pixels=4, repeats=1, compare=False))
    first = seeds.index(run._SEEDS_A_RUN)
    assert len(seeds) > first + 2
    assert seeds[first:] == [run._SEEDS_A_RUN + 2 * turn for turn in range(len(seeds) - first)]


def test_both_decoders_are_measured_side_by_side(tiny, quick):
    decoders = ["sequential", "parallel"]
    options = BenchOptions(model=tiny, decoders=decoders, num_pixels=16, repeats=2, compare=False, memory=False)
    result = run_benchmark(options)
    assert result.same_parallel_images is True
    sequential, parallel = result.measurements
    assert (sequential.decoder, parallel.decoder) == ("sequential", "parallel")
    assert quick == []
    assert (sequential.peak_bytes, sequential.over_sequential, sequential.pixels_per_pass) == (None, None, None)
    ratios = sorted(a / b for a, b in zip(sequential.seconds, parallel.seconds, strict=True))
    assert parallel.over_sequential == pytest.approx({"median": sum(ratios) / 2, "min": ratios[0], "max": ratios[1]})
    # Two timed images of 16 pixels; what the warm-up took does not count.
    assert parallel.pixels_per_pass == pytest.approx(32 / sum(parallel.run_lengths.values()))


def test_decoders_that_disagree_are_told_of(tiny, quick, monkeypatch):
    original = implementations.OurDraw.__call__

    def wrong(self, *arguments, **options):
        return original(self, *arguments, **options) + (self.sampler.plan.decoder == "parallel")

    monkeypatch.setattr(implementations.OurDraw, "__call__", wrong)
    options = BenchOptions(model=tiny, decoders=["sequential", "parallel"], num_pixels=4, repeats=1, compare=False)
    assert run_benchmark(options).same_parallel_images is False


def test_the_reference_may_be_measured_in_stretches(tiny, quick, monkeypatch):
    monkeypatch.setattr(implementations.TheirDraw, "step_s", lambda *_: 0.5)
    options = BenchOptions(
        model=tiny, precisions=["int8"], num_pixels=16, repeats=1, reference_precisions=["float32"], reference_pixels=3
    )
    result = run_benchmark(options)
    assert [one.seconds for one in result.measurements if one.who == "transformers"] == [[8.0]]
    assert result.same_greedy_pixels is True  # of a sampler in float32 that is not measured
    with pytest.raises(ValueError, match="reference_pixels is 16: five such stretches are no part of an image"):
        run_benchmark(BenchOptions(model=tiny, reference_pixels=16))


def test_transformers_does_not_stop_at_its_fifty_best_colours():
    config = ImageGPTConfig(**{**CONFIG, "vocab_size": 201})
    model = implementations.model_of(config, torch.float32, "cpu")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all colours alike
    draw = implementations.Contestant(who="transformers", precision="float32").make(model, "cpu")
    assert len(torch.unique(draw(64, 16))) > 150


def test_random_weights_are_the_same_each_time_and_disturb_no_generator():
    config = ImageGPTConfig(**CONFIG)
    state = torch.get_rng_state()
    first, second = (implementations.model_of(config, torch.bfloat16, "cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.training
    assert first.lm_head.weight.dtype == torch.bfloat16
    assert first.transformer.ln_f.weight.dtype == torch.float32
    assert implementations.config_of("medium").n_embd == 1024


@pytest.mark.parametrize("module", ["transformers.models.no_imagegpt", "transformers.models.gpt2"])
def test_without_transformers_imagegpt_ours_is_measured_alone(tiny, quick, monkeypatch, module):
    monkeypatch.setattr(implementations, "_REFERENCE", module)
    result = run_benchmark(BenchOptions(model=tiny, num_pixels=2, repeats=1))
    assert result.not_compared == "transformers has no ImageGPT: not compared"
    assert [one.who for one in result.measurements] == ["imagegpt"]


def test_a_model_without_biases_is_measured_alone(tmp_path, quick):
    ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG, use_bias=False)).save_pretrained(tmp_path)
    result = run_benchmark(BenchOptions(model=str(tmp_path), num_pixels=2, repeats=1))
    assert result.not_compared == "transformers' ImageGPT has other weights than this model: not compared"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batches": [1, 0]}, "one of batches is 0: it must be a whole number from 1 to 65,536"),
        ({"batches": []}, r"batches is \[\]: give at least one, and each once"),
        ({"batches": [2, 2]}, r"batches is \[2, 2\]: give at least one, and each once"),
        ({"repeats": 0}, "repeats is 0"),
        ({"num_pixels": True}, "num_pixels is True"),
        ({"reference_pixels": 0}, "reference_pixels is 0"),
        ({"decoders": ["both"]}, "decoders has 'both': choose from sequential, parallel"),
        ({"reference_precisions": ["int8"]}, "reference_precisions has 'int8': choose from float32, bfloat16"),
        ({"precisions": ["float16"]}, "precisions has 'float16': choose from float32, bfloat16, int8"),
    ],
)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BenchOptions(model="digits", **fields)


def test_more_pixels_than_there_are_and_models_that_cannot_draw_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="num_pixels is 17: this model's images have 16 pixels"):
        run_benchmark(BenchOptions(model=tiny, num_pixels=17))
    with pytest.raises(ValueError, match="backend is 'gpu': choose one of auto, cpp, torch, cuda"):
        run_benchmark(BenchOptions(model=tiny, backend="gpu"))
    bert = ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG, is_causal=False))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bidirectional"):
        run_benchmark(BenchOptions(model=str(tmp_path / "bert")))
    ImageGPTForImageClassification(ImageGPTConfig(**CONFIG)).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="do not fit"):
        run_benchmark(BenchOptions(model=str(tmp_path / "classifier")))


def test_a_process_tells_what_its_model_adds(tmp_path):
    # 50 MB of weights, nearly all in the MLP, and a cache too small to see.
    config = ImageGPTConfig(**{**CONFIG, "n_layer": 1, "n_inner": 380_000})
    ImageGPTForCausalImageModeling(config).save_pretrained(tmp_path)
    # Not ours: it lays weights out in blocks, which for so odd a matrix take twice the room.
    contestant = implementations.Contestant(who="transformers", precision="float32")
    peak = memory.bytes_in_a_process(contestant, str(tmp_path), "cpu", 1, 3)
    weights = cost.weight_bytes(config)
    assert 0.9 * weights < peak < 1.5 * weights
    assert memory.in_use("cpu") <= memory.in_use("cpu", peak=True)


def test_a_process_that_fails_is_told_of(tmp_path):
    contestant = implementations.Contestant(who="imagegpt", precision="float32")
    with pytest.raises(RuntimeError, match="there is no folder"):
        memory.bytes_in_a_process(contestant, str(tmp_path / "nothing"), "cpu", 1, 2)


def test_the_environment_names_versions_and_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "bench", "--batch", "2"])
    facts = timing.environment("imagegpt")
    assert facts["command"] == "imagegpt bench --batch 2"
    assert (facts["torch"], facts["threads"]) == (torch.__version__, torch.get_num_threads())
    assert facts["libc"] == " ".join(platform.libc_ver()).strip()
