"""The sampler against a loop that runs the whole model for every pixel, and against itself in other batches."""

import pytest
import torch

from imagegpt import ImageGPTForImageClassification, ImageGPTPipeline
from imagegpt.checkpoints.registry import bundled_models
from imagegpt.sampling import Sampler, SamplingRules, image_seed
from imagegpt.sampling.rules import draw, gumbel_noise, seed_tensor

RULES = [
    SamplingRules(),
    SamplingRules(temperature=0),
    SamplingRules(top_k=3, temperature=1.3),
    SamplingRules(top_p=0.8),
    SamplingRules(temperature=0.7, top_k=6, top_p=0.9, min_p=0.05),
]


def seeds_of(num, seed=0):
    return [image_seed(seed, index) for index in range(num)]


@torch.no_grad()
def naive(model, prompts, seeds, rules):
    """No cache: all pixels so far through the model, to draw one more."""
    ids = torch.cat([torch.full((len(seeds), 1), model.config.sos_token_id), prompts], dim=1)
    for pixel in range(prompts.shape[1], model.config.n_positions):
        logits = model(ids, use_cache=False).logits[:, -1].float()
        noise = gumbel_noise(seed_tensor(seeds), torch.tensor([pixel]), model.config.num_colors)[:, 0]
        ids = torch.cat([ids, draw(logits, noise, rules).unsqueeze(1)], dim=1)
    return ids[:, 1:]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("num_given", [0, 1, 7, 15])
def test_cached_sampling_equals_the_naive_loop(build_model, rules, num_given):
    model = build_model(use_bias=False, scale_attn_by_inverse_layer_idx=True)
    prompts = torch.randint(0, 10, (3, num_given))
    images = Sampler(model).generate(prompts, seeds=seeds_of(3), rules=rules)
    assert torch.equal(images, naive(model, prompts, seeds_of(3), rules))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_backends_draw_the_same_images(tiny_model, backend):
    expected = Sampler(tiny_model).generate(seeds=seeds_of(4))
    tiny_model.set_attn_implementation(backend)
    assert torch.equal(Sampler(tiny_model).generate(seeds=seeds_of(4)), expected)


def batches_agree(model, rules):
    sampler, seeds = Sampler(model), seeds_of(8)
    together = sampler.generate(seeds=seeds, rules=rules)
    alone = torch.cat([sampler.generate(seeds=[seed], rules=rules) for seed in seeds])
    by_threes = torch.cat([sampler.generate(seeds=seeds[i : i + 3], rules=rules) for i in (0, 3, 6)])
    assert together.unique(dim=0).shape[0] == 8, "the images should differ, or nothing is shown"
    assert torch.equal(together, alone)
    assert torch.equal(together, by_threes)


@pytest.mark.parametrize("rules", [SamplingRules(), SamplingRules(top_p=0.8)], ids=str)
def test_an_image_does_not_depend_on_its_batch(build_model, rules):
    batches_agree(build_model(vocab_size=33, n_positions=64, n_embd=32), rules)


def test_an_image_of_the_bundled_model_does_not_depend_on_its_batch():
    if "digits" not in {bundled.name for bundled in bundled_models()}:
        pytest.skip("the digits model is not trained yet")
    batches_agree(ImageGPTPipeline.from_pretrained("digits", device="cpu").model, SamplingRules())


def test_prompts_shared_and_distinct_in_one_batch(tiny_model):
    """Equal prompts are read once; every image must still continue its own."""
    sampler = Sampler(tiny_model)
    prompts = torch.tensor([[5, 1, 2], [0, 0, 9], [5, 1, 2], [3, 3, 3], [0, 0, 9]])
    images = sampler.generate(prompts, seeds=seeds_of(5))
    assert torch.equal(images[:, :3], prompts)
    alone = [sampler.generate(prompts[i : i + 1], seeds=seeds_of(5)[i : i + 1]) for i in range(5)]
    assert torch.equal(images, torch.cat(alone))


def test_continuing_an_image_gives_the_image(tiny_model):
    sampler = Sampler(tiny_model)
    images = sampler.generate(seeds=seeds_of(3))
    assert torch.equal(sampler.generate(images[:, :6], seeds=seeds_of(3)), images)


def test_seeds_decide(tiny_model):
    sampler = Sampler(tiny_model)
    first, again, other = (sampler.generate(seeds=seeds_of(2, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    twins = sampler.generate(seeds=[5, 5])
    assert torch.equal(twins[0], twins[1])


def test_greedy_is_top_1_whatever_the_seed(tiny_model):
    sampler = Sampler(tiny_model)
    greedy = sampler.generate(seeds=[1, 2], rules=SamplingRules(temperature=0))
    assert torch.equal(greedy, sampler.generate(seeds=[3, 4], rules=SamplingRules(top_k=1)))
    assert torch.equal(greedy[0], greedy[1])


def test_half_precision_draws_from_float32_logits(build_model):
    model = build_model().to(torch.bfloat16)
    images = Sampler(model).generate(seeds=seeds_of(3))
    assert images.dtype == torch.int64
    assert model.dtype == torch.bfloat16
    assert torch.equal(images, naive(model, images[:, :0], seeds_of(3), SamplingRules()))


def test_whole_prompts_come_back_and_shorter_images_can_be_asked_for(tiny_model):
    sampler = Sampler(tiny_model)
    whole = torch.randint(0, 10, (2, 16))
    assert torch.equal(sampler.generate(whole, seeds=[0, 1]), whole)
    short = sampler.generate(seeds=[0, 1], num_pixels=5)
    assert torch.equal(short, sampler.generate(seeds=[0, 1])[:, :5])
    assert sampler.generate(seeds=[]).shape == (0, 16)


def test_callbacks_see_every_pixel_in_order(tiny_model):
    seen = []
    images = Sampler(tiny_model).generate(
        torch.zeros(2, 3, dtype=torch.int64), seeds=[0, 1], on_pixel=lambda pixel, drawn: seen.append((pixel, drawn))
    )
    assert [pixel for pixel, _ in seen] == list(range(3, 16))
    assert torch.equal(torch.stack([drawn for _, drawn in seen], dim=1), images[:, 3:])


def test_the_prompt_is_not_edited(tiny_model):
    prompts = torch.zeros(2, 3, dtype=torch.int64)
    Sampler(tiny_model).generate(prompts, seeds=[0, 1])
    assert not prompts.any()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (torch.zeros(2, 17, dtype=torch.int64), {}, "the prompts have 17 pixels, the images are to have 16: shorten"),
        (
            torch.zeros(2, 5, dtype=torch.int64),
            {"num_pixels": 4},
            "the prompts have 5 pixels, the images are to have 4",
        ),
        (torch.full((2, 2), 10), {}, "the prompts contain 10, the start token: give pixels only"),
        (torch.full((2, 2), 11), {}, "the prompts contain 11: this model knows colours 0 to 9"),
        (torch.full((2, 2), -1), {}, "the prompts contain -1: this model knows colours 0 to 9"),
        (torch.zeros(2, 2), {}, "prompts are torch.float32: give colour ids as whole numbers"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, "2 seeds were given for 3 prompts: give one seed an image"),
        (torch.zeros(2, dtype=torch.int64), {}, r"prompts have the shape \(2,\): give \(images, pixels\)"),
        (None, {"num_pixels": 0}, "num_pixels is 0: this model draws 1 to 16 pixels"),
        (None, {"num_pixels": 17}, "num_pixels is 17: this model draws 1 to 16 pixels"),
        (None, {"seeds": [0, -3]}, "seed is -3: it must be a whole number from 0"),
    ],
)
def test_wrong_prompts_are_refused_in_one_sentence(tiny_model, prompts, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Sampler(tiny_model).generate(prompts, **{"seeds": [0, 1], **options})


def test_models_that_cannot_sample_are_refused(build_model, tiny_model):
    with pytest.raises(ValueError, match="bidirectional"):
        Sampler(build_model(is_causal=False))
    with pytest.raises(ValueError, match="cross-attention"):
        Sampler(build_model(add_cross_attention=True))
    with pytest.raises(TypeError, match="a ImageGPTForImageClassification cannot draw images"):
        Sampler(ImageGPTForImageClassification(tiny_model.config))
    with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        Sampler(tiny_model.train()).generate(seeds=[0])


def test_broken_weights_are_reported_and_no_image_is_given(tiny_model):
    with torch.no_grad():
        tiny_model.transformer.wpe.weight[9] = torch.nan
    with pytest.raises(ValueError, match=r"logits are not finite in torch.float32"):
        Sampler(tiny_model).generate(seeds=[0])
    assert Sampler(tiny_model).generate(seeds=[0], num_pixels=9).shape == (1, 9)


def test_drawn_images_can_be_trained_on(tiny_model):
    """They were inference tensors once, which no backward pass may hold on to."""
    images = Sampler(tiny_model).generate(None, seeds=[1, 2])
    tokens = torch.nn.functional.pad(images, (1, 0), value=tiny_model.config.sos_token_id)
    tiny_model(tokens, labels=tokens).loss.backward()
    assert not images.is_inference()
