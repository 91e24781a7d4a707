"""On a CUDA device: every model class and attention backend against float64 on the CPU, and the same images as there.

Bounds are a few units of the dtype's own precision (float32 with TF32 off: 2^-24, bfloat16: 2^-8, float16: 2^-11),
which a wrong mask, scale or cast exceeds by far.
"""

import pytest
import torch

from helpers import randomize, tiny_config
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.sampling import Sampler, SamplingRules, image_seed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
CLASSES = [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification]


def flash_or_skip(backend, dtype):
    if backend != "flash_attention_2":
        return
    pytest.importorskip("flash_attn", reason="flash attention is not installed")
    if dtype == torch.float32:
        pytest.skip("flash attention is for half precision")


def features(model, ids):
    output = model(ids, use_cache=False) if not isinstance(model, ImageGPTForImageClassification) else model(ids)
    return output[0].double().cpu()


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_agrees_with_float64_on_the_cpu(model_class, backend, dtype):
    flash_or_skip(backend, dtype)
    torch.manual_seed(0)
    config = tiny_config(n_embd=64, n_head=4, n_positions=36, num_labels=5)
    oracle = randomize(model_class(config)).eval()
    ids = torch.randint(config.num_colors, (3, 36))
    state = oracle.state_dict()
    expected = features(oracle.double(), ids)
    model = model_class(config).eval()
    model.load_state_dict(state)
    model.to("cuda", dtype)
    model.set_attn_implementation(backend)
    with torch.no_grad():
        actual = features(model, ids.cuda())
    error = ((actual - expected).norm() / expected.norm()).item()
    assert error < BOUNDS[dtype], error


RULES = [SamplingRules(), SamplingRules(temperature=0.0), SamplingRules(temperature=0.8, top_k=5, top_p=0.9)]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_samples_the_same_images_as_the_cpu(rules):
    torch.manual_seed(0)
    model = randomize(ImageGPTForCausalImageModeling(tiny_config(n_positions=64))).eval()
    seeds = [image_seed(3, index) for index in range(8)]
    on_cpu = Sampler(model).generate(None, seeds=seeds, rules=rules)
    on_gpu = Sampler(model.cuda()).generate(None, seeds=seeds, rules=rules)
    assert torch.equal(on_cpu, on_gpu.cpu())


@pytest.mark.parametrize("decoder", ["sequential", "parallel"])
@pytest.mark.parametrize("backend", ["cuda", "torch"])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_captured_steps_sample_the_same_images_as_the_cpu(rules, backend, decoder):
    torch.manual_seed(0)
    model = randomize(ImageGPTForCausalImageModeling(tiny_config(n_positions=144))).eval()
    prompts = [torch.randint(model.config.num_colors, (given,)) for given in (0, 30, 144, 30)]
    on_cpu = Sampler(model)
    on_gpu = Sampler(model.cuda(), backend=backend, decoder=decoder)
    assert (on_cpu.plan.backend, on_gpu.plan.backend) == ("cpp", backend)
    for first_seed in (0, 10):
        seeds = [image_seed(first_seed, index) for index in range(4)]
        expected = on_cpu.generate(prompts, seeds=seeds, rules=rules)
        assert torch.equal(on_gpu.generate(prompts, seeds=seeds, rules=rules).cpu(), expected)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_low_precision_is_close_to_float32(precision):
    torch.manual_seed(0)
    model = randomize(ImageGPTForCausalImageModeling(tiny_config(n_positions=64))).eval().cuda()
    ids = torch.randint(model.config.num_colors, (3, 64), device="cuda")
    with torch.no_grad():
        expected = model(ids).logits
        actual = Sampler(model, precision=precision).model(ids).logits
    assert (actual - expected).norm() / expected.norm() < 3e-2
    assert Sampler(model, precision=precision).generate(seeds=[1, 2]).shape == (2, 64)


def test_running_out_of_memory_splits_the_batch():
    torch.manual_seed(0)
    model = randomize(ImageGPTForCausalImageModeling(tiny_config(n_positions=1024))).eval().cuda()
    seeds = [image_seed(0, index) for index in range(64)]
    expected = Sampler(model).generate(seeds=seeds, num_pixels=40)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    room = 20 * Sampler(model).plan.bytes_per_image + (64 << 20)
    hog = torch.empty(max(0, free - room), dtype=torch.uint8, device="cuda")
    actual = Sampler(model).generate(seeds=seeds, num_pixels=40)
    del hog
    assert torch.equal(actual, expected)


def test_gradients_agree_with_float64_on_the_cpu():
    torch.manual_seed(0)
    config = tiny_config()
    model = randomize(ImageGPTForCausalImageModeling(config)).eval()
    ids = torch.randint(config.num_colors, (2, config.n_positions))
    gradients = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        moved = ImageGPTForCausalImageModeling(config).eval()
        moved.load_state_dict(model.state_dict())
        moved.to(device, dtype)
        moved(ids.to(device), labels=ids.to(device)).loss.backward()
        gradients.append(torch.cat([parameter.grad.double().cpu().flatten() for parameter in moved.parameters()]))
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-5


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("is_causal", [True, False])
def test_gradients_of_flex_attention(model_class, is_causal):
    """torch has its backward pass for GPUs only."""
    model = randomize(model_class(tiny_config(is_causal=is_causal)))
    ids = torch.randint(16, (2, 16))
    gradients = []
    for device, dtype, backend in (("cpu", torch.float64, "eager"), ("cuda", torch.float32, "flex_attention")):
        moved = model_class(model.config).train()
        moved.load_state_dict(model.state_dict())
        moved.to(device, dtype).set_attn_implementation(backend)
        moved(ids.to(device))[0].square().mean().backward()
        gradients.append(torch.cat([p.grad.double().cpu().flatten() for p in moved.parameters()]))
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-5
