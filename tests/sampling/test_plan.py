"""The execution plan: which backend and precision a model gets."""

import dataclasses
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface

from imagegpt import kernels
from imagegpt.model.layers import eager_attention_forward
from imagegpt.sampling import ExecutionPlan, Sampler, SamplingRules
from imagegpt.sampling.packed_linear import stored_bytes
from naive import naive, prompts_of, seeds_of, varied_model


def images_of(model, **options):
    return Sampler(model, **options).generate(seeds=seeds_of(2))


def expected_of(model):
    return naive(model, prompts_of([0, 0]), seeds_of(2), SamplingRules())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_cpu_gets_the_cpp_backend(build_model, precision):
    plan = ExecutionPlan.choose(build_model(), precision=precision)
    assert (plan.backend, plan.precision, plan.device) == ("cpp", precision, "cpu")
    assert str(plan) == f"{precision} on cpu, C++ kernels, batches of 256 images"


def test_a_plan_is_frozen_comparable_and_printable(build_model):
    plan = ExecutionPlan.choose(build_model())
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.precision = "int8"
    assert "precision='float32'" in repr(plan)
    assert "Parameter" not in repr(plan)
    assert plan == ExecutionPlan.choose(build_model())
    assert plan != ExecutionPlan.choose(build_model(), backend="torch")


def test_a_sampler_has_no_mutable_state(tiny_model):
    sampler = Sampler(tiny_model, decoder="parallel")
    before = {name: id(value) for name, value in vars(sampler).items()}
    sampler.generate(seeds=[1, 2])
    next(sampler.stream(seeds=[1]))
    assert {name: id(value) for name, value in vars(sampler).items()} == before


@pytest.mark.parametrize("variant", ["exact gelu", "relu"])
def test_unsupported_activations_run_in_torch(variant):
    model = varied_model(variant)
    assert ExecutionPlan.choose(model).backend == "torch"
    assert torch.equal(images_of(model), expected_of(model))
    with pytest.raises(
        ValueError, match=r"^backend is 'cpp', which does not support this model \(it has a \w+\): choose"
    ):
        ExecutionPlan.choose(model, backend="cpp")


def test_other_dtypes_run_unchanged_in_torch(build_model):
    for dtype in (torch.float16, torch.float64):
        plan = ExecutionPlan.choose(build_model().to(dtype))
        assert (plan.backend, plan.precision) == ("torch", str(dtype).removeprefix("torch."))
        assert ExecutionPlan.choose(build_model().to(dtype), precision="float32").backend == "cpp"


def test_forward_hooks_run(build_model):
    """Regression: the compiled graph of a block with a hook was reused for other blocks, even in other processes."""
    model = build_model()
    plain = images_of(model)
    handle = model.transformer.h[0].register_forward_hook(lambda block, given, out: out * 0.5)
    assert ExecutionPlan.choose(model).backend == "torch"
    hooked = images_of(model)
    assert not torch.equal(hooked, plain)
    assert torch.equal(hooked, expected_of(model))
    handle.remove()
    assert torch.equal(images_of(model), plain)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # raised by peft
def test_adapters_run(build_model):
    model = build_model()
    plain = images_of(model)
    config = LoraConfig(target_modules=["c_fc"], init_lora_weights=False, fan_in_fan_out=True)
    tuned = get_peft_model(model, config).base_model.model
    assert ExecutionPlan.choose(tuned).backend == "torch"
    assert not torch.equal(images_of(tuned), plain)
    assert torch.equal(images_of(tuned), expected_of(tuned))


def test_a_replaced_forward_runs(build_model):
    """Regression: with a forward replaced as accelerate does, 26 of 64 pixels were wrong."""
    model = build_model()
    block = model.transformer.h[0]
    forward = block.forward
    block.forward = lambda *args, **options: forward(*args, **options) * 0.5
    assert ExecutionPlan.choose(model).backend == "torch"
    assert torch.equal(images_of(model, in_place=True), expected_of(model))


def test_a_model_changed_after_preparation_is_refused(tiny_model):
    sampler = Sampler(tiny_model)
    handle = sampler.model.transformer.h[0].register_forward_hook(lambda block, given, out: out)
    with pytest.raises(
        ValueError, match=r"^the model was changed after it was prepared, and the C\+\+ kernels no longer support"
    ):
        sampler.generate(seeds=[1])
    handle.remove()
    assert sampler.generate(seeds=[1]).shape == (1, 16)


def test_offloaded_models_can_be_sampled(build_model, tmp_path):
    """Regression: this raised an error inside torch."""
    from accelerate import cpu_offload, disk_offload

    for offload in (cpu_offload, lambda model, **how: disk_offload(model, tmp_path, **how)):
        model = build_model()
        expected = images_of(model)
        offload(model, execution_device=torch.device("cpu"))
        assert model.transformer.h[0].mlp.c_fc.weight.is_meta
        assert ExecutionPlan.choose(model).backend == "torch"
        assert torch.equal(images_of(model), expected)
        with pytest.raises(ValueError, match=r"^precision is 'int8', but the weights of this model are offloaded"):
            Sampler(model, precision="int8")


@pytest.mark.parametrize("backend", ["eager", "sdpa", "kernels"])
def test_the_attention_implementation_does_not_change_images(build_model, backend):
    model = build_model()
    expected = expected_of(model)
    model.set_attn_implementation(backend)
    for step in ("cpp", "torch"):
        assert torch.equal(images_of(model, backend=step), expected)


def test_a_custom_attention_runs(build_model):
    def halved(module, query, key, value, attention_mask, scaling, **options):
        return eager_attention_forward(module, query, key, value, attention_mask, scaling / 2, **options)

    AttentionInterface.register("halved", halved)
    model, other = build_model(), build_model()
    with torch.no_grad():
        for block in other.transformer.h:
            block.attn.scaling /= 2
    model.config._attn_implementation = "halved"
    assert ExecutionPlan.choose(model).backend == "torch"
    assert torch.equal(images_of(model), expected_of(other))


def test_attention_without_masks_is_refused(build_model):
    model = build_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match=r"^the model's attention is 'flash_attention_2', which cannot attend to part of"
    ):
        Sampler(model)


def test_a_missing_compiler_falls_back_to_torch_with_a_warning(build_model, monkeypatch):
    def fail(*_):
        raise RuntimeError("there is no C++ compiler: install one")

    monkeypatch.setattr(kernels.step, "load_step_library", fail)
    model = build_model()
    with pytest.warns(
        UserWarning, match=r"^sampling runs in torch, which is slower: there is no C\+\+ compiler: install one"
    ):
        plan = ExecutionPlan.choose(model)
    assert plan.backend == "torch"
    with pytest.raises(
        ValueError, match=r"^backend is 'cpp', which does not support this model \(there is no C\+\+ comp"
    ):
        ExecutionPlan.choose(model, backend="cpp")


@pytest.mark.parametrize("setting", [{"CXX": "/nonexistent", "PATH": "/nonexistent"}, {"CXX": "false"}])
def test_a_failing_compiler_falls_back_to_torch(setting, tmp_path, forkserver):
    script = (
        "import warnings, torch; from imagegpt import ImageGPTPipeline\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always'); pipe = ImageGPTPipeline.from_pretrained('digits', device='cpu')\n"
        "print(pipe.sampler.plan.backend, [str(one.message) for one in said if 'slower' in str(one.message)])\n"
        "pipe.sample(1)\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **setting}
    done = forkserver.run(["-c", script], env=environment)
    assert done.stdout.startswith("torch ['sampling runs in torch, which is slower: "), done.stderr[-2000:]
    assert not list(tmp_path.glob("imagegpt/kernels/*.so"))


def test_a_session_is_limited_to_the_models_positions(build_model):
    with pytest.raises(ValueError, match=r"^num_pixels is 40: this model samples 1 to 16 pixels"):
        ExecutionPlan.choose(build_model()).open_session(1, 40)


def test_the_batch_size_does_not_depend_on_free_memory(build_model, monkeypatch):
    sizes = set()
    for free in (1 << 30, 1 << 40):
        monkeypatch.setattr("imagegpt.common.memory.available_memory", lambda free=free: free)
        sizes.add(ExecutionPlan.choose(build_model()).batch_size)
    assert len(sizes) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_max_memory_is_checked_before_the_model_changes(build_model, backend, precision):
    model = build_model(n_embd=48)
    before = str(model)
    with pytest.raises(ValueError, match="max_memory is 1,000 bytes, but the weights take") as error:
        ExecutionPlan.choose(model, backend=backend, precision=precision, max_memory=1000, in_place=True)
    assert str(model) == before
    prepared = ExecutionPlan.choose(model, backend=backend, precision=precision).model
    assert f"the weights take {stored_bytes(prepared):,} and" in str(error.value)
