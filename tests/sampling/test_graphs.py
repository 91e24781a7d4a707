"""Graphs of blocks: when they are made, where they are kept and found, and never taken for another's."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from imagegpt.kernels.building import default_folder
from imagegpt.sampling import Sampler
from imagegpt.sampling import compilation as module
from imagegpt.sampling.cache import StaticCache
from imagegpt.sampling.compilation import Compiler, varying
from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.projections import freeze
from naive import NUM_PIXELS, RULES, VARIANTS, compiled, naive, prompts_of, varied_model

pytestmark = pytest.mark.usefixtures("with_kernels")


@pytest.fixture(scope="module")
def model():
    return varied_model(num_pixels=NUM_PIXELS)


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

    def __init__(self, layout):
        super().__init__(only_known=True)
        self.keys, self._layout = [], layout

    def has_kernels(self, device):
        return self._layout == "tiles"

    def runner(self, step, kind, arguments, dynamic):
        self.keys.append(module._key(kind, arguments, dynamic))


def runner_keys(
    model, num_images, num_fed, length=None, precision="float32", cache_dtype=torch.float32, layout="tiles"
):
    """The keys of the graphs of each block."""
    frozen = freeze(model, precision, in_place=False)
    decoder = Decoder(frozen, StaticCache(frozen, num_images, cache_dtype), KeyReader(layout))
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


@pytest.mark.parametrize("layout", ["rows", "tiles"])
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
        {"layout": "rows"},
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
    for source in module._SOURCES:
        (tmp_path / source).parent.mkdir(exist_ok=True)
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
    assert re.match(r"0 \[['\"]sampling goes on uncompiled and slower: ", said), said
    assert said.count("sampling goes on") == 1
    assert not list(tmp_path.glob("imagegpt/*/*"))
