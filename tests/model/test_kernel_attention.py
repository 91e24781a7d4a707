"""The attention backend "kernels": when it runs, and when it falls back to torch."""

import pytest
import torch

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.kernels import attention as training
from imagegpt.model.attention import kernels


@pytest.fixture
def calls(monkeypatch, with_training_kernels):
    """Count calls of the kernel."""
    seen = []
    attention = training.attention
    monkeypatch.setattr(training, "attention", lambda *given: seen.append(1) or attention(*given))
    monkeypatch.setattr(kernels, "has_kernels", lambda: True)
    return seen


def small_model(**options):
    torch.manual_seed(0)
    fields = {"vocab_size": 11, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    return ImageGPTForCausalImageModeling(ImageGPTConfig(**fields, **options)).eval()


def logits(model, backend, **more):
    model.set_attn_implementation(backend)
    ids = torch.randint(10, (3, 16), generator=torch.Generator().manual_seed(1))
    return model(ids, **more).logits


def test_kernel_is_called_for_each_block(calls):
    logits(small_model(), "kernels")
    assert len(calls) == 2


def test_unsupported_cases_fall_back_to_torch(calls):
    model = small_model()
    mask = torch.ones(3, 16, dtype=torch.int64)
    mask[0, :5] = 0
    masked = logits(model, "kernels", attention_mask=mask)
    torch.testing.assert_close(masked[0, 5:], logits(model, "eager", attention_mask=mask)[0, 5:], rtol=1e-4, atol=1e-5)
    assert not calls
    ids = torch.randint(10, (2, 4))
    model.set_attn_implementation("kernels")
    mine = model.generate(ids, max_new_tokens=6, do_sample=False)  # all but the first pass has more keys than queries
    model.set_attn_implementation("eager")
    assert torch.equal(mine, model.generate(ids, max_new_tokens=6, do_sample=False))
    model.train()
    before = len(calls)
    logits(model, "kernels")  # with dropout
    assert len(calls) == before


def test_without_compiler_falls_back_to_torch(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(training, "load", fail)
    monkeypatch.setattr(training, "is_loaded", lambda: False)
    kernels.has_kernels.cache_clear()
    model = small_model()
    with pytest.warns(UserWarning, match="using torch's attention, which is slower: no compiler here"):
        mine = logits(model, "kernels")
    assert torch.equal(mine, logits(model, "sdpa"))  # and says nothing again
    kernels.has_kernels.cache_clear()


def test_kernels_are_compiled_on_first_use(monkeypatch):
    seen = []
    find_or_build = training.find_or_build
    monkeypatch.setattr(training, "find_or_build", lambda library: seen.append(1) or find_or_build(library))
    monkeypatch.setattr(training, "_loaded", [])
    kernels.has_kernels.cache_clear()
    model = small_model()
    logits(model, "sdpa")
    assert not seen
    logits(model, "kernels")
    logits(model, "kernels")
    assert seen == [1]
    assert training.is_loaded()
    kernels.has_kernels.cache_clear()
