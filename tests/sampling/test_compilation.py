"""Compiled blocks: the images are the naive ones, each graph is made once, kept on disk, and never taken for another.

A graph takes 8 to 20 s to compile. The tests that always run make two, in a folder of the session; `slow` makes others.
"""

import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from imagegpt.sampling import Sampler, SamplingRules, projections
from imagegpt.sampling import compilation as module
from imagegpt.sampling.cache import StaticCache
from imagegpt.sampling.compilation import Compiler, default_folder, varying
from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.parallel import RunLength
from imagegpt.sampling.projections import freeze
from naive import RULES, VARIANTS, OneForAll, naive, prompts_of, seeds_of, varied_model

NUM_PIXELS = 200  # four lengths of the cache, the last of them no whole bucket


@pytest.fixture(scope="session")
def shared_caches(tmp_path_factory):
    return tmp_path_factory.mktemp("shared-caches")


@pytest.fixture
def shared_graphs(shared_caches, monkeypatch):
    """Where the graphs are that tests share."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_caches))
    return default_folder()


@pytest.fixture
def own_graphs(tmp_path, monkeypatch):
    """Where no graph is yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return default_folder()


@pytest.fixture(scope="module")
def model():
    return varied_model(num_pixels=NUM_PIXELS)


class Runs(RunLength):
    """Runs of these lengths in turn, whatever the clock says."""

    def __init__(self, *lengths):
        super().__init__(NUM_PIXELS)
        self._turns = list(lengths)

    def choose(self):
        self._turns.append(self._turns.pop(0))
        return self._turns[-1]

    def observe(self, *measured):
        pass


def compiled(model, decoder="sequential", **options):
    sampler = Sampler(model, compile="always", decoder=decoder, **options)
    sampler._run_lengths = OneForAll(Runs(5, 16, 1))
    return sampler


def packed(monkeypatch):
    """Lay out the weights of these small models as those of large ones would be."""
    monkeypatch.setattr(projections, "_SMALL_WORK", 0)


# What is drawn: the naive images.


@pytest.mark.parametrize("num_pixels", [16, 64, NUM_PIXELS])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_uncompiled_images_are_the_naive_ones(num_pixels, rules):
    model = varied_model("scores scaled by layer", num_pixels, width={16: 16, 64: 64, NUM_PIXELS: 32}[num_pixels])
    prompts = prompts_of([0, num_pixels - 9, num_pixels - 1, num_pixels, num_pixels - 9])
    expected = naive(model, prompts, seeds_of(5), rules)
    for decoder in ("sequential", "parallel"):
        sampler = Sampler(model, compile=False, decoder=decoder)
        assert torch.equal(sampler.generate(prompts, seeds=seeds_of(5), rules=rules), expected)
        assert torch.equal(sampler.generate(prompts[:1], seeds=seeds_of(1), rules=rules), expected[:1])


def test_one_image_crosses_the_buckets_in_one_graph(model, shared_graphs):
    """All blocks, all lengths of the cache, all rules, the second image and the second sampler: one compilation."""
    sampler, expected = compiled(model), {}
    for rules in RULES:
        prompts = prompts_of([0 if rules == RULES[0] else 120])
        expected[rules] = naive(model, prompts, [5], rules)
        assert torch.equal(sampler.generate(prompts, seeds=[5], rules=rules), expected[rules])
        assert sampler._compiler.num_compilations == 1
    assert len(list(shared_graphs.iterdir())) == 1
    second = compiled(model)
    assert torch.equal(second.generate(seeds=[5]), expected[RULES[0]])
    assert second._compiler.num_compilations == 0
    for known in (True, False):  # a graph that is there is used without being asked for
        sampler = Sampler(model, compile=known)
        assert torch.equal(sampler.generate(seeds=[5]), expected[RULES[0]])
        runners = sampler._known_graphs._runners
        assert bool(runners and all(runners.values())) == known


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_uncompiled_images_that_share_prompts_are_the_naive_ones(rules):
    model = varied_model("heads pruned", 80)
    for prompts in (prompts_of([70]) * 3, prompts_of([1]) * 2, [*prompts_of([75]) * 2, *prompts_of([75], seed=1) * 2]):
        expected = naive(model, prompts, seeds_of(len(prompts)), rules)
        for decoder in ("sequential", "parallel"):
            sampler = Sampler(model, compile=False, decoder=decoder)
            assert torch.equal(sampler.generate(prompts, seeds=seeds_of(len(prompts)), rules=rules), expected)


def test_packed_batches_of_any_size_with_runs_of_any_length_share_a_graph(model, shared_graphs, monkeypatch):
    """Prompts of all lengths, all rules."""
    packed(monkeypatch)
    prompts = prompts_of([70, 140, 196, 199, 200, 64 + 128, 130, 196])
    prompts[7] = prompts[2].clone()
    sampler = compiled(model, "parallel")
    sampler._run_lengths = OneForAll(Runs(5, 16))
    for rules in RULES:
        first = 0 if rules == RULES[0] else 2  # the longest ones only once: the naive loop is slow
        expected = naive(model, prompts[first:], seeds_of(8)[first:], rules)
        for part in (slice(first, 8), slice(2, 5), slice(3, 7)):
            images = sampler.generate(prompts[part], seeds=seeds_of(8)[part], rules=rules)
            assert torch.equal(images, expected[part.start - first : part.stop - first])
            assert sampler._compiler.num_compilations == 1
    assert sampler.model.transformer.h[0].attn.c_attn.is_packed


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_pixels", [16, 64, NUM_PIXELS])
@pytest.mark.parametrize("num_images", [1, 2, 3, 8])
def test_compiled_images_are_the_naive_ones(num_pixels, num_images, own_graphs, monkeypatch):
    if num_images > 2:
        packed(monkeypatch)
    model = varied_model("scores scaled by layer", num_pixels, width={16: 16, 64: 32, NUM_PIXELS: 64}[num_pixels])
    prompts = prompts_of([0, num_pixels // 2, num_pixels - 1, 5, num_pixels, 0, 1, 1][:num_images])
    sequential, parallel = compiled(model), compiled(model, "parallel")
    for rules in RULES:
        expected = naive(model, prompts, seeds_of(num_images), rules)
        for sampler in (sequential, parallel):
            assert torch.equal(sampler.generate(prompts, seeds=seeds_of(num_images), rules=rules), expected)
    assert (sequential._compiler.num_compilations, parallel._compiler.num_compilations) == (1, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_images_that_share_prompts_compile_once(model, own_graphs):
    """Prompts of any length; of one pixel too, for which torch once fixed the length and gave up compiling for good."""
    sampler = compiled(model)
    for length in (1, 2, 70, 150, 200):
        for prompts in (prompts_of([length]) * 4, prompts_of([length], seed=1) * 4):
            images = sampler.generate(prompts, seeds=seeds_of(4))
            assert torch.equal(images, naive(model, prompts, seeds_of(4), RULES[0]))
    assert sampler._compiler.num_compilations <= 2, "one for a prompt that is shared, one for images without"
    two = prompts_of([70])[0], prompts_of([70], seed=1)[0]
    prompts = [two[0], two[0], two[1], two[1]]
    assert torch.equal(sampler.generate(prompts, seeds=seeds_of(4)), naive(model, prompts, seeds_of(4), RULES[0]))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_block_compiles(variant, own_graphs):
    """Rows for one image, several positions at once for three; pruned blocks have a graph each."""
    model = varied_model(variant, num_pixels=80)
    prompts = prompts_of([0, 70, 3])
    expected = naive(model, prompts, seeds_of(3), RULES[0])
    one, three = compiled(model), compiled(model, "parallel")
    three._run_lengths = OneForAll(Runs(5))
    assert torch.equal(one.generate(prompts[:1], seeds=seeds_of(1)), expected[:1])
    assert torch.equal(three.generate(prompts, seeds=seeds_of(3)), expected)
    assert one._compiler.num_compilations == three._compiler.num_compilations == (3 if "pruned" in variant else 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_rounded_weights_compile_to_what_they_are_uncompiled(precision, num_images, own_graphs):
    """Sums are taken in another order and keys are rounded: the logits agree to a fraction of bfloat16's 2^-8."""
    model = freeze(varied_model(num_pixels=80), precision, in_place=False)
    tokens = torch.stack(prompts_of([80] * num_images))
    results = []
    with torch.no_grad():
        for compiler in (None, Compiler()):
            decoder = Decoder(model, StaticCache(model, num_images, torch.bfloat16), compiler)
            together = decoder.feed(tokens[:, :60], torch.arange(60).expand(num_images, 60), 64)
            steps = [decoder.feed(tokens[:, [p]], torch.full((num_images, 1), p), 128) for p in range(60, 80)]
            results.append(torch.cat([together, *steps], dim=1))
    assert compiler.num_compilations == 2
    assert (results[1] - results[0]).norm() < 2e-3 * results[0].norm()


# When graphs are made, and where they are found.


def test_short_work_compiles_nothing_and_writes_nothing(model, own_graphs, monkeypatch):
    monkeypatch.setattr(module, "_compile_ahead", lambda *_: pytest.fail("compiled"))
    Sampler(model).generate(seeds=[1])
    Sampler(model, compile=False).generate(seeds=[1])
    assert not own_graphs.exists()


def test_long_work_is_compiled(model, own_graphs, monkeypatch):
    made = counting_compiler(monkeypatch)
    monkeypatch.setattr("imagegpt.sampling.engine._WORTH_COMPILING_S", 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Sampler(model).generate(seeds=[1], num_pixels=5)
        assert len(made) == 0
        Sampler(model).generate(seeds=[1])
        assert len(made) == 1


def counting_compiler(monkeypatch):
    """No compiler; a list of what it was asked to make."""
    asked = []

    def fail(path, *_):
        asked.append(path)
        raise OSError("disk full\nand more lines")

    monkeypatch.setattr(module, "_compile_ahead", fail)
    return asked


@pytest.mark.parametrize("decoder", ["sequential", "parallel"])
def test_without_a_compiler_it_is_said_once_and_images_are_right(own_graphs, decoder, monkeypatch):
    """The blocks of this model need three graphs, parallel decoding six."""
    model = varied_model("heads pruned")
    asked = counting_compiler(monkeypatch)
    sampler = compiled(model, decoder)
    expected = naive(model, prompts_of([0, 3]), [1, 2], RULES[0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(sampler.generate(prompts_of([0, 3]), seeds=[1, 2]), expected)
    assert [str(warning.message) for warning in said] == ["sampling goes on uncompiled and slower: OSError: disk full"]
    assert len(asked) == 1
    assert sampler._compiler.num_compilations == 0


@pytest.mark.parametrize("obstacle", ["a file", "forbidden"])
def test_a_folder_that_cannot_be_written_is_no_obstacle(model, tmp_path, obstacle, monkeypatch):
    if obstacle == "a file":
        (tmp_path / "imagegpt").write_text("in the way")
    else:
        (tmp_path / "imagegpt").mkdir(mode=0o500)
        forbid(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match=r"^sampling goes on uncompiled and slower: \w+Error: .*imagegpt"):
        images = compiled(model).generate(seeds=[1])
    assert torch.equal(images, naive(model, prompts_of([0]), [1], RULES[0]))
    assert torch.equal(images, Sampler(model).generate(seeds=[1])), "and nothing is said where nothing was asked for"


def forbid(monkeypatch, folder):
    """What a folder of somebody else's does, also to root, who may do anything."""
    real_stat, real_mkdir = os.stat, os.mkdir

    def deny(real):
        def denied(path, *args, **kwargs):
            if str(path).startswith(f"{folder}/imagegpt/"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        return denied

    monkeypatch.setattr(os, "stat", deny(real_stat))
    monkeypatch.setattr(os, "mkdir", deny(real_mkdir))


@pytest.mark.parametrize(
    "damage", [lambda whole: b"", lambda whole: b"no archive", lambda whole: whole[: len(whole) // 2]]
)
def test_a_damaged_graph_is_made_anew(model, shared_graphs, tmp_path, damage, monkeypatch):
    compiled(model).generate(seeds=[5], num_pixels=1)  # there from now on
    key = runner_keys(model, 1, 1)[0]
    whole = (shared_graphs / f"{key}.pt2").read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_compile_ahead", lambda path, *_: path.write_bytes(whole))
    folder = default_folder()
    folder.mkdir(parents=True)
    path = folder / f"{key}.pt2"
    path.write_bytes(damage(whole))
    assert torch.equal(Sampler(model).generate(seeds=[5]), naive(model, prompts_of([0]), [5], RULES[0]))
    assert not path.exists(), "or every run would try it"
    path.write_bytes(damage(whole))
    sampler = compiled(model)
    assert torch.equal(sampler.generate(seeds=[5]), naive(model, prompts_of([0]), [5], RULES[0]))
    assert sampler._compiler.num_compilations == 1
    assert path.read_bytes() == whole


def test_a_damaged_graph_in_a_folder_that_can_only_be_read_is_passed_over(model, own_graphs, monkeypatch):
    own_graphs.mkdir(parents=True)
    (own_graphs / f"{runner_keys(model, 1, 1)[0]}.pt2").write_bytes(b"no archive")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError("read-only")))
    assert torch.equal(Sampler(model).generate(seeds=[5]), naive(model, prompts_of([0]), [5], RULES[0]))


def test_a_graph_that_was_compiled_but_does_not_load_is_reported(model, own_graphs, monkeypatch):
    monkeypatch.setattr(module, "_compile_ahead", lambda path, *_: path.write_bytes(b"no archive"))
    with pytest.warns(UserWarning, match=r"uncompiled and slower: RuntimeError: .*cannot be loaded"):
        images = compiled(model).generate(seeds=[5])
    assert torch.equal(images, naive(model, prompts_of([0]), [5], RULES[0]))


def test_a_graph_made_meanwhile_is_found(model, shared_graphs, tmp_path, monkeypatch):
    """A sampler once remembered for good that a graph was not there."""
    compiled(model).generate(seeds=[5], num_pixels=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sampler = Sampler(model)
    sampler.generate(seeds=[5], num_pixels=1)
    assert list(sampler._known_graphs._runners.values()) == [None]
    shutil.copytree(shared_graphs, default_folder())
    sampler.generate(seeds=[5], num_pixels=1)
    assert None not in sampler._known_graphs._runners.values()


def test_nothing_is_left_behind_where_compiling_fails(tmp_path):
    class Unexportable(torch.nn.Module):
        def forward(self, x):
            return x + x.numpy().sum()

    with pytest.raises(Exception):  # noqa: B017, PT011 - torch's, whichever
        module._compile_ahead(tmp_path / "graph.pt2", Unexportable(), [torch.zeros(2)], [])
    assert not list(tmp_path.iterdir())


# Which graph is whose.


class KeyReader(Compiler):
    """Compiles nothing, remembers what it would have."""

    def __init__(self):
        super().__init__(only_known=True)
        self.keys = []

    def runner(self, step, kind, arguments, dynamic):
        self.keys.append(module._key(kind, arguments, dynamic))


def runner_keys(model, num_images, num_fed, length=None, precision="float32", cache_dtype=torch.float32, layout="rows"):
    """The keys of the graphs of each block."""
    frozen = freeze(model, precision, in_place=False)
    for block in frozen.transformer.h:
        for projection in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            projection.lay_out(layout)
    decoder = Decoder(frozen, StaticCache(frozen, num_images, cache_dtype), KeyReader())
    fed = torch.zeros(num_images, num_fed, dtype=torch.int64)
    with torch.no_grad():
        decoder.feed(fed, fed, decoder.cache.rounded(length or num_fed))
    return decoder._compiler.keys


def key(model, num_images=1, num_fed=1, **options):
    (one,) = set(runner_keys(model, num_images, num_fed, **options))
    return one


def test_blocks_share_a_graph_unless_they_differ_in_shape():
    assert len(set(runner_keys(varied_model("scores scaled by layer"), 1, 1))) == 1
    assert len(set(runner_keys(varied_model("heads pruned"), 1, 1))) == 3


@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_different_models_have_different_graphs(layout):
    """All but the first few differ in no shape."""
    models = [
        varied_model(),
        *(varied_model(name) for name in ("no biases", "narrow mlp", "one head")),
        varied_model(width=16),
        *(varied_model(name) for name in ("exact gelu", "relu", "large epsilon")),
    ]
    VARIANTS["another gelu"] = {"activation_function": "gelu_new"}
    VARIANTS["another epsilon"] = {"layer_norm_epsilon": 1.00001e-5}
    try:
        models += [varied_model("another gelu"), varied_model("another epsilon")]
    finally:
        del VARIANTS["another gelu"], VARIANTS["another epsilon"]
    assert len({key(model, layout=layout) for model in models}) == len(models)


def test_other_weights_and_scales_share_the_graph():
    model, other = varied_model(), varied_model("scores not scaled")
    with torch.no_grad():
        other.lm_head.weight.zero_()
        other.transformer.h[0].mlp.c_fc.weight.zero_()
    assert key(model) == key(other)


def test_what_a_graph_depends_on(model):
    options = [
        {},
        {"num_images": 2},
        {"num_images": 3},
        {"num_fed": 2},
        {"num_images": 3, "num_fed": 2},
        {"precision": "bfloat16"},
        {"precision": "int8"},
        {"cache_dtype": torch.bfloat16},
        {"layout": "packed"},
    ]
    assert len({key(model, **each) for each in options}) == len(options)
    for same in (
        [{"length": length} for length in (1, 64, 65, 150, 200)],
        [{"num_fed": num, "length": 100} for num in (2, 3, 64)],
        [{"num_images": num} for num in (3, 4, 50)],
        [{"num_images": num, "num_fed": fed} for num in (3, 9) for fed in (2, 5)],
    ):
        assert len({key(model, **each) for each in same}) == 1


def test_what_varies():
    """A dimension that torch is not told about makes it refuse other sizes."""
    room, seen, images, positions = {2: "room"}, {0: "seen"}, {0: "images"}, {1: "positions"}
    assert varying(1, 1, is_shared=False) == ({}, room, room, {}, seen)
    assert varying(2, 7, is_shared=False) == (positions, room, room, positions, seen)
    assert varying(3, 1, is_shared=False) == (images, {**images, **room}, {**images, **room}, images, seen)
    assert varying(3, 1, is_shared=True) == ({}, room, room, {}, seen, {2: "shared"}, {2: "shared"})


def test_the_code_is_part_of_the_key(model, tmp_path, monkeypatch):
    """A change to the arithmetic must not meet graphs of the old one."""
    package = Path(module.__file__).parent.parent
    (tmp_path / "model").mkdir()
    (tmp_path / "sampling").mkdir()
    for source in module._SOURCES:
        shutil.copy(package / source, tmp_path / source)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "sampling" / "compilation.py"))
    keys = []
    for source in ("", *module._SOURCES):
        if source:
            (tmp_path / source).write_bytes((tmp_path / source).read_bytes() + b"#")
        module._sources.cache_clear()
        keys.append(key(model))
    monkeypatch.undo()
    module._sources.cache_clear()
    assert len(set(keys)) == len(module._SOURCES) + 1


@pytest.mark.parametrize("change", ["hook", "foreign module"])
def test_a_block_that_was_tampered_with_runs_as_it_is(shared_graphs, change):
    """Its graph would have the key of the plain one, and compute something else."""
    plain, model = varied_model(num_pixels=NUM_PIXELS), varied_model(num_pixels=NUM_PIXELS)
    if change == "hook":
        model.transformer.h[1].mlp.register_forward_hook(lambda module, given, out: out * 3)
    else:
        model.transformer.h[1].mlp.act = Tripled()
    expected = naive(model, prompts_of([0]), [5], RULES[0])
    assert not torch.equal(expected, naive(plain, prompts_of([0]), [5], RULES[0]))
    sampler = compiled(model)
    assert torch.equal(sampler.generate(seeds=[5]), expected)
    assert sampler._compiler.num_compilations <= 1


class Tripled(torch.nn.Module):
    def forward(self, x):
        return 3 * x


def test_two_streams_of_a_sampler_do_not_disturb_each_other(model, monkeypatch):
    """Also where the second brings the weights into another layout."""
    packed(monkeypatch)
    for decoder in ("sequential", "parallel"):
        sampler = Sampler(model, decoder=decoder)
        expected = [sampler.generate(seeds=seeds) for seeds in ([1], [2], [3, 4, 5])]
        streams = [sampler.stream(seeds=seeds, row_length=20) for seeds in ([1], [2], [3, 4, 5])]
        rows = zip(*streams, strict=True)
        images = [torch.cat([row.ids for row in stream], dim=1) for stream in zip(*rows, strict=True)]
        assert all(map(torch.equal, images, expected))


# Other processes.

SCRIPT = """
import sys, warnings
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from imagegpt.sampling import Sampler
from naive import RULES, naive, prompts_of, varied_model
model = varied_model(num_pixels={num_pixels})
sampler = Sampler(model, compile="always")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    images = sampler.generate(seeds=[5])
    sampler.generate(seeds=[6])
assert torch.equal(images, naive(model, prompts_of([0]), [5], RULES[0]))
messages = [str(warning.message) for warning in said]
print(sampler._compiler.num_compilations, [message for message in messages if "sampling" in message])
"""


def run_elsewhere(caches, **environment):
    tests = Path(__file__).parents[1]
    script = SCRIPT.format(paths=[str(tests), str(tests / "sampling")], num_pixels=NUM_PIXELS)
    environment = {**os.environ, "XDG_CACHE_HOME": str(caches), **environment}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.slow
def test_the_second_process_finds_the_graphs(tmp_path):
    caches, temporary = tmp_path / "caches", tmp_path / "temporary"
    temporary.mkdir()
    assert run_elsewhere(caches) == "1 []"
    assert run_elsewhere(caches, TMPDIR=str(temporary), CXX="/nonexistent") == "0 []"
    assert not list(temporary.glob("aot*")), "what was unpacked is cleared away"


@pytest.mark.slow
def test_a_machine_without_a_compiler(tmp_path):
    said = run_elsewhere(tmp_path, CXX="/nonexistent", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"))
    assert said.startswith("0 ['sampling goes on uncompiled and slower: ")
    assert said.count("sampling goes on") == 1
    assert not list(tmp_path.glob("imagegpt/*/*"))


def test_rules_do_not_matter_to_graphs(model, shared_graphs):
    """The rules are applied outside the blocks."""
    sampler = compiled(model)
    sampler.generate(seeds=[1], num_pixels=2)
    before = sampler._compiler.num_compilations
    sampler.generate(seeds=[1], num_pixels=2, rules=SamplingRules(top_k=2))
    assert sampler._compiler.num_compilations == before
