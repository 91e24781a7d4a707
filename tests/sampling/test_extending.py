"""A precision, a decoder and a sampling rule added from outside the package."""

import pytest
import torch

from imagegpt.sampling import ExecutionPlan, Sampler, SamplingRules
from imagegpt.sampling.decoders import DECODERS, SequentialDecoder
from imagegpt.sampling.weight_formats import WEIGHT_FORMATS, WeightFormat
from naive import seeds_of


class Float8(WeightFormat):
    """A quarter of the bytes, with three mantissa bits."""

    name, dtype, cache_dtype = "float8", torch.float8_e4m3fn, torch.float32

    def pack(self, rows):
        return rows.to(self.dtype), None

    def matmul(self, x, weight):
        return x @ weight.float().t()

    def unpack(self, weight, scale):
        return weight.float()


@pytest.fixture
def float8(monkeypatch):
    monkeypatch.setattr(WEIGHT_FORMATS, "_registered", dict(WEIGHT_FORMATS._registered))
    WEIGHT_FORMATS.register("float8")(Float8())


def test_a_new_precision(build_model, float8):
    model = build_model(n_embd=32)
    sampler = Sampler(model, precision="float8")
    assert (sampler.plan.backend, sampler.plan.precision) == ("torch", "float8")
    assert sampler.model.transformer.h[0].mlp.c_fc.weight.dtype == torch.float8_e4m3fn
    images = sampler.generate(seeds=seeds_of(8))
    same = (images == Sampler(model).generate(seeds=seeds_of(8))).float().mean()
    assert 0.3 < same < 1
    with pytest.raises(ValueError, match="there is already a precision named 'float8'"):
        WEIGHT_FORMATS.register("float8")(Float8())
    with pytest.raises(ValueError, match="choose one of auto, float32, bfloat16, int8, float8"):
        Sampler(model, precision="float4")


class Backwards(SequentialDecoder):
    """One row at a time, the last one first."""

    def advance(self, session, rows):
        super().advance(session, rows[-1:])


def test_a_new_decoder(build_model, monkeypatch):
    monkeypatch.setattr(DECODERS, "_registered", dict(DECODERS._registered))
    DECODERS.register("backwards")(lambda make_backend, config, device: lambda num_pixels: Backwards())
    model = build_model()
    images, statistics = Sampler(model, decoder="backwards").run(seeds=seeds_of(3))
    assert torch.equal(images, Sampler(model).generate(seeds=seeds_of(3)))
    assert statistics.passes_by_length == {1: 48}
    with pytest.raises(ValueError, match="there is already a decoder named 'parallel'"):
        DECODERS.register("parallel")(DECODERS.get("parallel"))


class OnlyEven(SamplingRules):
    """Even colours only."""

    def filter(self, logits):
        odd = torch.arange(logits.shape[-1], device=logits.device) % 2 == 1
        return super().filter(logits).masked_fill(odd, -torch.inf)


def test_a_new_rule(build_model):
    plan = ExecutionPlan.choose(build_model())
    images = Sampler(build_model()).generate(seeds=seeds_of(4), rules=OnlyEven(top_k=5))
    assert (images % 2 == 0).all()
    assert len(images.unique()) > 2
    session = plan.open_session(2)
    for rules in (OnlyEven(top_k=5), SamplingRules(top_k=5)):
        session.admit(torch.empty(0, dtype=torch.int64), seeds_of(1)[0], rules)
    while session.unfinished():
        session.step()
    assert torch.equal(session.pixels(0), images[0])
    assert (session.pixels(1) % 2).any()
