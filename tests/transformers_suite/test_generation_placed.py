"""Generation with a compiled forward, and with offloaded weights."""

import pytest
import torch
from transformers.generation import CompileConfig
from transformers.utils import import_utils

from generating import EVERY_KIND, KINDS, PROMPT, generator, inputs_of, naive, naive_beams, prompts
from helpers import largest_difference
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.model.cache import CACHE_ARGUMENT


def compiling(**options):
    """Compile on the CPU with a backend that generates no code: the test is about graphs and guards."""
    config = CompileConfig(**{"fullgraph": True, "dynamic": False, "backend": "eager", "mode": None, **options})
    config._compile_all_devices = True
    return config


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        pytest.param(kind, backend, marks=[] if (kind, backend) == ("plain", "sdpa") else pytest.mark.slow)
        for kind in KINDS
        for backend in ("eager", "sdpa")
    ],
)
def test_one_graph_for_all_steps_of_all_images(kind, backend):
    torch.compiler.reset()
    model, inputs = generator(kind, backend), inputs_of(kind)
    options = {"cache_implementation": "static", "compile_config": compiling(), "do_sample": False, **inputs}
    assert torch.equal(model.generate(prompts(), **options), naive(model, prompts(), **inputs))
    assert hasattr(model, "_compiled_call")
    with torch.compiler.set_stance("fail_on_recompile"):
        again = model.generate(prompts(seed=1), **options)
    assert torch.equal(again, naive(model, prompts(seed=1), **inputs))


@pytest.mark.slow
def test_compiled_forward_returns_all_outputs():
    torch.compiler.reset()
    model = generator(backend="eager")
    options = {
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True,
        "output_attentions": True, "cache_implementation": "static", "do_sample": False,
    }  # fmt: skip
    output = model.generate(prompts(), compile_config=compiling(fullgraph=False), **options)
    assert hasattr(model, "_compiled_call")
    plain = model.generate(prompts(), **options)
    assert torch.equal(output.sequences, plain.sequences)
    for name in ("scores", "logits"):
        assert largest_difference(torch.stack(output[name]), torch.stack(plain[name])) < 1e-6
    for name in ("attentions", "hidden_states"):
        for step, expected in zip(output[name], plain[name], strict=True):
            assert len(step) == len(expected) > 0
            assert all(largest_difference(a, b) < 1e-9 for a, b in zip(step, expected, strict=True))


@pytest.mark.slow
def test_compiled_generation_matches_eager():
    torch.compiler.reset()
    model = generator(dtype=torch.float32)
    images = model.generate(
        prompts(), cache_implementation="static", compile_config=compiling(backend="inductor"), do_sample=False
    )
    assert torch.equal(images, naive(model, prompts()))


@EVERY_KIND
def test_beams_with_blocks_on_disk(kind, tmp_path):
    """A device map as for several GPUs; the hooks are the same without a GPU."""
    pytest.importorskip("accelerate")
    model, inputs = generator(kind, dtype=torch.float32), {k: x.float() for k, x in inputs_of(kind, 1).items()}
    model.save_pretrained(tmp_path / "model")
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    parts = ImageGPTForCausalImageModeling.from_pretrained(
        tmp_path / "model", device_map={**places, "transformer.h.0": "cpu", "transformer.h.1": "disk",
        "transformer.drop": "cpu"}, offload_folder=tmp_path / "disk",
    )  # fmt: skip
    images = parts.generate(
        prompts(1), num_beams=2, num_return_sequences=2, do_sample=False, max_new_tokens=4, **inputs
    )
    assert torch.equal(images, naive_beams(model, prompts(1), 2, 4, **inputs)[0])
    assert images.shape == (2, PROMPT + 4)


def on_a_gpu(flash):
    """A model in bfloat16 with the backend, and the same with eager attention."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if not getattr(import_utils, f"is_flash_attn_{flash[-1]}_available", lambda: False)():
        pytest.skip(f"{flash} is not installed")
    return [generator(backend=name, dtype=torch.bfloat16, n_embd=64).cuda() for name in (flash, "eager")]


FLASH = pytest.mark.parametrize("flash", ["flash_attention_2", "flash_attention_3", "flash_attention_4"])


@pytest.mark.gpu
@FLASH
def test_flash_attention_generates_as_eager_attention(flash):
    logits = []
    for model in on_a_gpu(flash):
        output = model.generate(
            prompts().cuda(), do_sample=False, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        )
        past = output.get(CACHE_ARGUMENT)
        more = model(prompts(length=1).cuda(), past_key_values=past, position_ids=torch.full((2, 1), PROMPT).cuda())
        logits.append(torch.cat([output.logits[0], more.logits[:, 0].float()]))
    assert largest_difference(*logits) < 0.05


@pytest.mark.gpu
@FLASH
@pytest.mark.parametrize("told", [False, True], ids=["by_positions", "by_lengths"])
def test_flash_attention_of_images_packed_in_a_row(flash, told):
    lengths = [4, 6]
    alone = [prompts(1, length, seed=length).cuda() for length in lengths]
    where = {"position_ids": torch.cat([torch.arange(n) for n in lengths])[None].cuda()}
    if told:
        ends = torch.tensor([0, 4, 10], dtype=torch.int32).cuda()
        where |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 6, "max_length_k": 6}
    model, eager = on_a_gpu(flash)
    packed = model(torch.cat(alone, dim=1), use_cache=False, **where).logits
    expected = torch.cat([eager(ids, use_cache=False).logits for ids in alone], dim=1)
    assert largest_difference(packed, expected) < 0.05
