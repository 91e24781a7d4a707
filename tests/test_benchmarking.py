"""The benchmark's arithmetic and fairness; how fast anything is, is not asserted."""

import statistics

import pytest
import torch

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.benchmarking import BenchOptions, contestants, memory, run, run_benchmark, timing
from imagegpt.model import cost
from imagegpt.sampling import Sampler

CONFIG = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}


@pytest.fixture
def tiny(tmp_path):
    """A folder with weights, which is all a benchmark needs."""
    folder = tmp_path / "tiny"
    ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def quick(monkeypatch):
    """Memory is read a megabyte at a time, and what processes take is told at once: who asked is kept."""
    asked = []

    def told(*arguments):
        asked.append(arguments)
        return 1000

    monkeypatch.setattr(timing.MemoryReader.__init__, "__defaults__", (1 << 20,))
    monkeypatch.setattr(run, "bytes_in_a_process", told)
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
    config = ImageGPTConfig(**CONFIG)
    for one in rows:
        assert len(one.seconds) == 3
        assert one.ms_per_pixel == pytest.approx(1e3 * statistics.median(one.seconds) / 6)
        assert one.images_per_s == pytest.approx(1e3 * one.batch / (16 * one.ms_per_pixel))
        size = {"float32": 4, "bfloat16": 2}[one.precision]
        sizes = {"batch": one.batch, "weight_size": size, "cache_size": size}
        # The cache grows evenly: between pixels 0 and 5 it holds 2.5 on average.
        in_the_middle = [cost.step_bytes(config, pixel, **sizes) for pixel in (2, 3)]
        assert one.floor_ms == pytest.approx(1e3 * sum(in_the_middle) / 2 / rate)
        assert one.share == pytest.approx(one.floor_ms / one.ms_per_pixel)
        assert one.peak_bytes == 1000
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


def test_both_draw_from_the_same_weights_and_all_colours():
    model = contestants.model_of(ImageGPTConfig(**CONFIG), torch.float32, "cpu")
    theirs = contestants.Contestant(who="transformers", precision="float32").make(model, "cpu")
    assert contestants.same_greedy_pixels(model, theirs, 16)
    other = ImageGPTForCausalImageModeling(ImageGPTConfig(**CONFIG)).eval()
    assert not contestants.same_greedy_pixels(other, theirs, 16)
    assert theirs(2, 5).shape == (2, 5)
    ours = contestants.Contestant(who="imagegpt", precision="float32").make(model, "cpu")
    assert torch.equal(ours(2, 5), Sampler(model).generate(None, seeds=[0, 1], num_pixels=5))


def test_transformers_does_not_stop_at_its_fifty_best_colours():
    config = ImageGPTConfig(**{**CONFIG, "vocab_size": 201})
    model = contestants.model_of(config, torch.float32, "cpu")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all colours alike
    draw = contestants.Contestant(who="transformers", precision="float32").make(model, "cpu")
    assert len(torch.unique(draw(64, 16))) > 150


def test_random_weights_are_the_same_each_time_and_disturb_no_generator():
    config = ImageGPTConfig(**CONFIG)
    state = torch.get_rng_state()
    first, second = (contestants.model_of(config, torch.bfloat16, "cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.training
    assert first.lm_head.weight.dtype == torch.bfloat16
    assert first.transformer.ln_f.weight.dtype == torch.float32
    assert contestants.config_of("medium").n_embd == 1024


@pytest.mark.parametrize("module", ["transformers.models.no_imagegpt", "transformers.models.gpt2"])
def test_without_transformers_imagegpt_ours_is_measured_alone(tiny, quick, monkeypatch, module):
    monkeypatch.setattr(contestants, "_REFERENCE", module)
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
        ({"batches": [1, 0]}, "batches has 0: it must be a whole number of at least 1"),
        ({"batches": []}, r"batches is \[\]: give at least one, and each once"),
        ({"batches": [2, 2]}, r"batches is \[2, 2\]: give at least one, and each once"),
        ({"repeats": 0}, "repeats has 0"),
        ({"num_pixels": True}, "num_pixels has True"),
        ({"precisions": ["float16"]}, "precisions has 'float16': choose from float32, bfloat16, int8"),
    ],
)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BenchOptions(model="digits", **fields)


def test_more_pixels_than_there_are_and_models_that_cannot_draw_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="num_pixels is 17: this model's images have 16 pixels"):
        run_benchmark(BenchOptions(model=tiny, num_pixels=17))
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
    # transformers holds each weight once; our sampler may keep a second layout of them.
    contestant = contestants.Contestant(who="transformers", precision="float32")
    peak = memory.bytes_in_a_process(contestant, str(tmp_path), "cpu", 1, 2)
    weights = cost.weight_bytes(config)
    assert 0.9 * weights < peak < 1.5 * weights
    assert memory.in_use("cpu") <= memory.in_use("cpu", peak=True)


def test_a_process_that_fails_is_told_of(tmp_path):
    contestant = contestants.Contestant(who="imagegpt", precision="float32")
    with pytest.raises(RuntimeError, match="there is no folder"):
        memory.bytes_in_a_process(contestant, str(tmp_path / "nothing"), "cpu", 1, 2)


def test_the_environment_names_versions_and_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "bench", "--batch", "2"])
    facts = timing.environment("imagegpt")
    assert facts["command"] == "imagegpt bench --batch 2"
    assert (facts["torch"], facts["threads"]) == (torch.__version__, torch.get_num_threads())
