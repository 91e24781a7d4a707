"""The precision chosen on each processor and device, by everything that chooses one; all are mocked."""

import pytest
import torch

from helpers import tiny_model
from imagegpt import ImageGPTPipeline
from imagegpt.common.precision import choose_precision, has_fast_bfloat16
from imagegpt.sampling import Sampler
from imagegpt.sampling.packed_linear import PackedLinear
from imagegpt.sampling.weight_formats import choose_format
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.lr_finder import LearningRateSearch
from imagegpt.training.optimizers import muon
from imagegpt.training.parallelism import autocast
from imagegpt.training.recipe_files import bundled_recipes, find_recipe
from imagegpt.training.recipe_io import parse_recipe, read_recipe
from imagegpt.training.run import Run
from imagegpt.training.run_precision import resolve_precision

CPU = torch.device("cpu")
PLAIN = {"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
PROCESSORS = {
    "AVX2": ({"avx2": True}, False),
    "AVX-512 without bfloat16": (PLAIN, False),
    "AVX-512 BF16": ({**PLAIN, "avx512_bf16": True}, True),
    "AMX": ({**PLAIN, "amx_bf16": True}, True),
    "AMX for int8 alone": ({**PLAIN, "amx_tile": True, "amx_int8": True}, False),
    "ARM": ({"architecture": "aarch64", "neon": True}, False),
    "ARM with bfloat16, not measured": ({"architecture": "aarch64", "neon": True, "bf16": True}, False),
}


@pytest.fixture
def processor(monkeypatch):
    """Makes the processor one with these abilities."""
    return lambda **abilities: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)


@pytest.fixture
def plain(processor):
    processor(**PLAIN)


@pytest.fixture
def able(processor):
    processor(**PLAIN | {"avx512_bf16": True})


def recipe(**training):
    fields = {"num_steps": 4, "warmup_steps": 1, "batch_size": 4, **training}
    model = {"n_layer": 1, "n_embd": 8, "n_head": 1}
    monitoring = {"validate_every": 2, "checkpoint_every": 2, "samples": 0, "validation_images": 8}
    return parse_recipe({"model": model, "data": {"train": "digits"}, "training": fields, "monitoring": monitoring})


@pytest.mark.parametrize("name", PROCESSORS)
def test_auto_precision_on_cpus(name, processor):
    abilities, expected = PROCESSORS[name]
    processor(**abilities)
    assert has_fast_bfloat16(CPU) is expected
    chosen = choose_precision("auto", CPU)
    assert chosen.precision == ("bfloat16" if expected else "float32")
    has = "has instructions" if expected else "has no instructions"
    assert str(chosen) == f"{chosen.precision} (this processor {has} for bfloat16)"


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 6), True), ((9, 0), True)]
)
def test_auto_precision_on_cuda_gpus(capability, expected, monkeypatch, able):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    device = torch.device("cuda:1")
    assert choose_precision("auto", device).precision == ("bfloat16" if expected else "float32")
    assert "this GPU has" in choose_precision("auto", device).reason
    assert set(asked) == {device}, "each GPU has its own"


def test_apple_gpus_use_float32(able):
    assert choose_precision("auto", torch.device("mps")).precision == "float32"


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
@pytest.mark.parametrize("abilities", [PLAIN, PLAIN | {"amx_bf16": True}])
def test_an_explicit_precision_is_used_unchanged(asked, abilities, processor):
    processor(**abilities)
    assert choose_precision(asked, CPU).precision == asked
    assert choose_precision(asked, CPU).reason.startswith("as requested")


def test_a_slow_choice_is_reported_as_slow(plain):
    slow = "although this processor has no instructions for bfloat16: float32 is faster here"
    assert choose_precision("bfloat16", CPU).reason == f"as requested, {slow}"
    assert choose_precision("auto", CPU, "bfloat16").reason == f"as before, {slow}"
    assert choose_precision("float32", CPU).reason == "as requested"


@pytest.mark.parametrize("recorded", ["float32", "bfloat16"])
@pytest.mark.parametrize("abilities", [PLAIN, PLAIN | {"amx_bf16": True}])
def test_auto_keeps_the_recorded_precision(recorded, abilities, processor):
    processor(**abilities)
    assert choose_precision("auto", CPU, recorded).precision == recorded


def test_compiled_code_can_call_has_fast_bfloat16(plain):
    torch._dynamo.reset()

    class Asks(torch.nn.Module):
        def forward(self, x):
            return x + 1 if has_fast_bfloat16(x.device) else x - 1

    exported = torch.export.export(Asks(), (torch.ones(2),))
    assert exported.module()(torch.ones(2)).tolist() == [0.0, 0.0]


def is_in_bfloat16(recipe):
    with autocast(CPU, recipe.training.precision):
        return torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["pictures", "finetune", "cifar10", *(f"imagenet32-{s}" for s in ("small", "large"))])
def test_recipes_use_the_fast_precision_of_the_processor(name, processor):
    """They asked for bfloat16 wherever they ran: a step of `pictures` took seven times as long as in float32."""
    chosen = read_recipe(find_recipe(name))
    processor(**PLAIN)
    assert not is_in_bfloat16(chosen)
    processor(**PLAIN | {"amx_bf16": True})
    assert is_in_bfloat16(chosen)


def test_no_recipe_requires_bfloat16(plain):
    assert not [name for name, path in bundled_recipes().items() if is_in_bfloat16(read_recipe(path))]


@pytest.mark.parametrize("name", ["digits", "digits-bert", "cifar10-cpu", "finetune-digits", "finetune-digits-bert"])
def test_recipes_of_bundled_models_do_not_depend_on_the_machine(name, able):
    assert not is_in_bfloat16(read_recipe(find_recipe(name)))


def test_muon_multiplies_in_float32_on_gpus_without_bfloat16(monkeypatch):
    matrices = torch.empty(1, 2, 2, device="meta")
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert muon._matmul_dtype(matrices) == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert muon._matmul_dtype(matrices) == torch.bfloat16


class TestRuns:
    @pytest.mark.parametrize(("abilities", "expected"), [({}, "float32"), ({"avx512_bf16": True}, "bfloat16")])
    def test_the_precision_of_a_run_is_recorded(self, abilities, expected, processor, tmp_path):
        processor(**PLAIN | abilities)
        run = Run(recipe(), tmp_path / "m", DistributedContext(CPU))
        assert run.recipe.training.precision == run.precision.precision == expected
        assert read_recipe(tmp_path / "m" / "recipe.yaml").training.precision == expected

    @pytest.mark.parametrize("first", ["float32", "bfloat16"])
    def test_a_run_resumes_in_its_recorded_precision(self, first, processor, tmp_path):
        """On another machine "auto" means something else; the arithmetic of a run must not change half-way."""
        processor(**PLAIN | {"amx_bf16": first == "bfloat16"})
        Run(recipe(), tmp_path / "m", DistributedContext(CPU))
        processor(**PLAIN | {"amx_bf16": first != "bfloat16"})
        run = Run(recipe(), tmp_path / "m", DistributedContext(CPU))
        assert run.recipe.training.precision == first
        assert run.precision.reason.startswith("as before")
        assert read_recipe(tmp_path / "m" / "recipe.yaml").training.precision == first
        assert Run(recipe(), tmp_path / "m", DistributedContext(CPU), force=True).recipe.training.precision != first

    def test_resuming_in_another_precision_is_refused(self, plain, tmp_path):
        Run(recipe(), tmp_path / "m", DistributedContext(CPU))
        with pytest.raises(ValueError, match=r"holds a run with training\.precision = float32, now it is bfloat16"):
            Run(recipe(precision="bfloat16"), tmp_path / "m", DistributedContext(CPU))
        assert (
            Run(recipe(precision="float32"), tmp_path / "m", DistributedContext(CPU)).recipe.training.precision
            == "float32"
        )

    def test_a_damaged_record_is_one_sentence(self, plain, tmp_path):
        Run(recipe(), tmp_path / "m", DistributedContext(CPU))
        for content in (b"training: [", b"\xff\xfe", b"training: 3"):
            (tmp_path / "m" / "recipe.yaml").write_bytes(content)
            with pytest.raises(ValueError, match=r"holds a run whose recipe\.yaml is damaged"):
                Run(recipe(), tmp_path / "m", DistributedContext(CPU))

    def test_the_main_process_decides_for_all_processes(self, plain):
        class Second(DistributedContext):
            """A process on a plain processor, whose main process runs on another."""

            def broadcast(self, value):
                assert value.precision == "float32"
                return choose_precision("bfloat16", CPU)

        assert resolve_precision(recipe(), None, Second(CPU))[0].training.precision == "bfloat16"

    def test_a_learning_rate_search_keeps_its_precision(self, processor, tmp_path):
        processor(**PLAIN)
        search = LearningRateSearch(recipe(), tmp_path / "s", DistributedContext(CPU), num_steps=2)
        search.try_rate(0.01)
        processor(**PLAIN | {"amx_bf16": True})
        again = LearningRateSearch(recipe(), tmp_path / "s", DistributedContext(CPU), num_steps=2)
        assert again.recipe_for(0.01).training.precision == again.precision.precision == "float32"
        assert again.losses.keys() == {0.01}
        new = LearningRateSearch(recipe(), tmp_path / "s", DistributedContext(CPU), num_steps=2, force=True)
        assert new.precision.precision == "bfloat16"

    def test_a_trainer_without_a_run_chooses_its_precision(self, processor):
        processor(**PLAIN)
        assert not is_in_bfloat16(recipe())
        processor(**PLAIN | {"amx_bf16": True})
        assert is_in_bfloat16(recipe())


class TestSampling:
    @pytest.mark.parametrize(("abilities", "expected"), [({}, "float32"), ({"avx512_bf16": True}, "bfloat16")])
    def test_auto_is_the_fast_precision_of_the_device(self, abilities, expected, processor):
        processor(**PLAIN | abilities)
        sampler = Sampler(tiny_model(), precision="auto")
        assert sampler.plan.precision == expected
        packed = [module for module in sampler.model.modules() if isinstance(module, PackedLinear)]
        assert {linear.format.name for linear in packed} == {expected}

    def test_the_default_is_float32_on_every_machine(self, able):
        assert Sampler(tiny_model()).plan.precision == "float32"
        assert ImageGPTPipeline.from_pretrained("digits").sampler.plan.precision == "float32"
        assert Sampler(tiny_model(dtype=torch.bfloat16)).plan.precision == "bfloat16"

    def test_int8_batches_multiply_in_the_fast_precision(self, processor, monkeypatch):
        """Without our kernels: a product of 1,024 rows took five times as long in bfloat16 that was emulated."""
        projection = tiny_model().transformer.h[0].attn.c_attn
        packed = PackedLinear(projection, choose_format("int8", CPU, torch.float32), "rows")
        dtypes = []
        linear = torch.nn.functional.linear
        monkeypatch.setattr(
            torch.nn.functional, "linear", lambda x, *given: dtypes.append(x.dtype) or linear(x, *given)
        )
        for abilities in (PLAIN, PLAIN | {"amx_bf16": True}):
            processor(**abilities)
            packed(torch.ones(5, packed.in_features))
        assert dtypes == [torch.float32, torch.bfloat16]
