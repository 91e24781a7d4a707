"""How a model is sampled is decided once: by model, device and what can be compiled."""

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
def test_cpp_is_chosen_on_a_cpu(build_model, precision):
    plan = ExecutionPlan.choose(build_model(), precision=precision)
    assert (plan.backend, plan.precision, plan.device) == ("cpp", precision, "cpu")
    assert str(plan) == f"{precision} on cpu, in C++, 256 images at a time"


def test_a_plan_is_frozen_and_says_what_decides_pixels(build_model):
    plan = ExecutionPlan.choose(build_model())
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.precision = "int8"
    assert "precision='float32'" in repr(plan)
    assert "Parameter" not in repr(plan)
    assert plan == ExecutionPlan.choose(build_model())
    assert plan != ExecutionPlan.choose(build_model(), backend="torch")


def test_a_sampler_changes_nothing_of_itself(tiny_model):
    sampler = Sampler(tiny_model, decoder="parallel")
    before = {name: id(value) for name, value in vars(sampler).items()}
    sampler.generate(seeds=[1, 2])
    next(sampler.stream(seeds=[1]))
    assert {name: id(value) for name, value in vars(sampler).items()} == before


@pytest.mark.parametrize("variant", ["exact gelu", "relu"])
def test_what_cpp_does_not_know_is_computed_in_torch(variant):
    model = varied_model(variant)
    assert ExecutionPlan.choose(model).backend == "torch"
    assert torch.equal(images_of(model), expected_of(model))
    with pytest.raises(
        ValueError, match=r"^backend is 'cpp', which cannot compute this model \(it has a \w+\): choose"
    ):
        ExecutionPlan.choose(model, backend="cpp")


def test_other_dtypes_stay_as_they_are(build_model):
    for dtype in (torch.float16, torch.float64):
        plan = ExecutionPlan.choose(build_model().to(dtype))
        assert (plan.backend, plan.precision) == ("torch", str(dtype).removeprefix("torch."))
        assert ExecutionPlan.choose(build_model().to(dtype), precision="float32").backend == "cpp"


def test_hooks_are_run(build_model):
    """A block with a hook was compiled, and its graph taken for that of other blocks, in other processes, too."""
    model = build_model()
    plain = images_of(model)
    handle = model.transformer.h[0].register_forward_hook(lambda block, given, out: out * 0.5)
    assert ExecutionPlan.choose(model).backend == "torch"
    hooked = images_of(model)
    assert not torch.equal(hooked, plain)
    assert torch.equal(hooked, expected_of(model))
    handle.remove()
    assert torch.equal(images_of(model), plain)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_adapters_are_run(build_model):
    model = build_model()
    plain = images_of(model)
    config = LoraConfig(target_modules=["c_fc"], init_lora_weights=False, fan_in_fan_out=True)
    tuned = get_peft_model(model, config).base_model.model
    assert ExecutionPlan.choose(tuned).backend == "torch"
    assert not torch.equal(images_of(tuned), plain)
    assert torch.equal(images_of(tuned), expected_of(tuned))


def test_a_block_whose_forward_was_replaced_is_run_as_it_is(build_model):
    """accelerate's hooks do that; 26 of 64 pixels were wrong."""
    model = build_model()
    block = model.transformer.h[0]
    forward = block.forward
    block.forward = lambda *args, **options: forward(*args, **options) * 0.5
    assert ExecutionPlan.choose(model).backend == "torch"
    assert torch.equal(images_of(model, in_place=True), expected_of(model))


def test_a_model_that_is_changed_after_it_was_prepared(tiny_model):
    sampler = Sampler(tiny_model)
    handle = sampler.model.transformer.h[0].register_forward_hook(lambda block, given, out: out)
    with pytest.raises(
        ValueError, match=r"^the model was changed after it was prepared, and C\+\+ cannot compute it now"
    ):
        sampler.generate(seeds=[1])
    handle.remove()
    assert sampler.generate(seeds=[1]).shape == (1, 16)


def test_offloaded_blocks_are_brought_when_they_are_needed(build_model, tmp_path):
    """They died with a message of torch."""
    from accelerate import cpu_offload, disk_offload

    for offload in (cpu_offload, lambda model, **how: disk_offload(model, tmp_path, **how)):
        model = build_model()
        expected = images_of(model)
        offload(model, execution_device=torch.device("cpu"))
        assert model.transformer.h[0].mlp.c_fc.weight.is_meta
        assert ExecutionPlan.choose(model).backend == "torch"
        assert torch.equal(images_of(model), expected)
        with pytest.raises(ValueError, match=r"^precision is 'int8', and hooks move this model's weights"):
            Sampler(model, precision="int8")


@pytest.mark.parametrize("backend", ["eager", "sdpa", "kernels"])
def test_the_models_attention_is_respected(build_model, backend):
    model = build_model()
    expected = expected_of(model)
    model.set_attn_implementation(backend)
    for step in ("cpp", "torch"):
        assert torch.equal(images_of(model, backend=step), expected)


def test_an_attention_of_the_users_own_is_run(build_model):
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


def test_attention_that_cannot_look_at_a_cache_is_refused(build_model):
    model = build_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match=r"^the model's attention is 'flash_attention_2', which cannot look at a part of"
    ):
        Sampler(model)


def test_without_a_compiler_it_is_said_and_images_are_right(build_model, monkeypatch):
    def fail(*_):
        raise RuntimeError("there is no C++ compiler: install one")

    monkeypatch.setattr(kernels.step, "loaded_step", fail)
    model = build_model()
    with pytest.warns(
        UserWarning, match=r"^sampling goes on in torch and slower: there is no C\+\+ compiler: install one"
    ):
        plan = ExecutionPlan.choose(model)
    assert plan.backend == "torch"
    with pytest.raises(
        ValueError, match=r"^backend is 'cpp', which cannot compute this model \(there is no C\+\+ comp"
    ):
        ExecutionPlan.choose(model, backend="cpp")


@pytest.mark.parametrize("setting", [{"CXX": "/nonexistent", "PATH": "/nonexistent"}, {"CXX": "false"}])
def test_a_machine_whose_compiler_fails(setting, tmp_path, forkserver):
    script = (
        "import warnings, torch; from imagegpt import ImageGPTPipeline\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always'); pipe = ImageGPTPipeline.from_pretrained('digits', device='cpu')\n"
        "print(pipe.sampler.plan.backend, [str(one.message) for one in said if 'slower' in str(one.message)])\n"
        "pipe.sample(1)\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **setting}
    done = forkserver.run(["-c", script], env=environment)
    assert done.stdout.startswith("torch ['sampling goes on in torch and slower: "), done.stderr[-2000:]
    assert not list(tmp_path.glob("imagegpt/kernels/*.so"))


def test_a_session_has_no_more_pixels_than_the_model_has_positions(build_model):
    with pytest.raises(ValueError, match=r"^num_pixels is 40: this model draws 1 to 16 pixels"):
        ExecutionPlan.choose(build_model()).open(1, 40)


def test_the_batch_size_does_not_depend_on_what_is_free_at_the_moment(build_model, monkeypatch):
    sizes = set()
    for free in (1 << 30, 1 << 40):
        monkeypatch.setattr("imagegpt.common.memory.available_bytes", lambda free=free: free)
        sizes.add(ExecutionPlan.choose(build_model()).batch_size)
    assert len(sizes) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_too_little_memory_is_said_before_the_model_is_touched(build_model, backend, precision):
    model = build_model(n_embd=48)
    before = str(model)
    with pytest.raises(ValueError, match="max_memory is 1,000 bytes, the weights take") as error:
        ExecutionPlan.choose(model, backend=backend, precision=precision, max_memory=1000, in_place=True)
    assert str(model) == before
    prepared = ExecutionPlan.choose(model, backend=backend, precision=precision).model
    assert f"the weights take {stored_bytes(prepared):,} and" in str(error.value)
