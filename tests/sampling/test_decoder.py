"""The cache and the decoder around it: pixels fed in any pieces give the logits of the whole model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.cache_utils import DynamicCache

from imagegpt.sampling.cache import BUCKET, BlockCache, StaticCache
from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.projections import freeze, lay_out
from imagegpt.sampling.prompts import num_shared_prompts
from naive import VARIANTS, prompts_of, varied_model

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def decoder_for(model, num_images, cache_dtype=torch.float32, precision="float32"):
    frozen = freeze(model, precision, in_place=False)
    return Decoder(frozen, StaticCache(frozen, num_images, cache_dtype), None)


def tokens_of(model, num_images, seed=0):
    """What is fed for some images: the start token, and all pixels but the last."""
    images = torch.stack(prompts_of([model.config.n_positions] * num_images, model.config.num_colors, seed))
    return functional.pad(images[:, :-1], (1, 0), value=model.config.sos_token_id)


def feed(decoder, tokens, positions):
    return decoder.feed(tokens, positions, decoder.cache.rounded(int(positions.max()) + 1))


def all_at_once(decoder, tokens):
    return feed(decoder, tokens, torch.arange(tokens.shape[1]).expand(tokens.shape))


def error(logits, expected):
    return ((logits - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_models_own(variant, layout, with_kernels):
    """Rounding was 1e-7 to 4e-7 of the logits' norm; any of the variants taken for another is off by 1e-2 and more."""
    model = varied_model(variant, num_pixels=70)
    tokens = tokens_of(model, 3)
    frozen = freeze(model, "float32", in_place=False)
    lay_out(frozen, layout)
    assert {block.mlp.c_fc.layout for block in frozen.transformer.h} == {layout}
    decoder = Decoder(frozen, StaticCache(frozen, 3, torch.float32), None)
    expected = model.double()(tokens, use_cache=False).logits
    assert error(all_at_once(decoder, tokens), expected) < 2e-6
    one_by_one = [feed(decoder, tokens[:, [p]], torch.full((3, 1), p)) for p in range(70)]
    assert error(torch.cat(one_by_one, dim=1), expected) < 2e-6


@pytest.mark.parametrize("variant", ["no biases", "exact gelu", "large epsilon", "scores not scaled"])
def test_the_tolerance_tells_the_variants_apart(variant):
    """Same weights where there are any, another arithmetic."""
    model, other = varied_model(), varied_model(variant)
    other.load_state_dict(model.state_dict(), strict=False)
    tokens = tokens_of(model, 3)
    assert error(all_at_once(decoder_for(other, 3), tokens), model(tokens, use_cache=False).logits) > 1e-3


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_pieces_at_any_pace_give_the_same_logits(data):
    """Each image has a position of its own, and feeds pieces of the length that all share."""
    num_images = data.draw(st.integers(1, 4), label="images")
    model = varied_model("heads pruned", num_pixels=80)
    tokens = tokens_of(model, num_images, seed=data.draw(st.integers(0, 9), label="seed"))
    expected = model(tokens, use_cache=False).logits
    decoder = decoder_for(model, num_images)
    starts = data.draw(st.lists(st.integers(0, 40), min_size=num_images, max_size=num_images), label="starts")
    for image, start in enumerate(starts):  # what comes before the starts, of one image at a time
        everyone = torch.zeros(num_images, 1, dtype=torch.int64)
        for position in range(start):
            everyone[image] = position
            feed(decoder, tokens.gather(1, everyone), everyone)
    position = torch.tensor(starts).unsqueeze(1)
    while position.max() < 80:
        window = (position + torch.arange(data.draw(st.integers(1, 20), label="piece"))).clamp(max=79)
        logits = feed(decoder, tokens.gather(1, window), window)
        wanted = expected.gather(1, window.unsqueeze(2).expand(-1, -1, expected.shape[2]))
        assert error(logits, wanted) < 2e-6
        position = window[:, -1:] + 1


def test_what_stands_at_later_positions_is_never_seen():
    """Wrong guesses and longer prompts leave it there; it must change no bit."""
    model = varied_model(num_pixels=100)
    tokens, logits = tokens_of(model, 3), []
    for garbage in (0.0, 1e30, -3.0):
        decoder = decoder_for(model, 3)
        for tensor in (*decoder.cache.keys, *decoder.cache.values):
            tensor.fill_(garbage)
        first = feed(decoder, tokens[:, :9], torch.arange(9).expand(3, 9))
        own = torch.tensor([[9], [5], [2]])  # two images go back to what they had fed already
        logits.append(torch.cat([first, feed(decoder, tokens.gather(1, own), own)], dim=1))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_a_wrong_guess_is_forgotten_when_its_position_is_fed_again():
    model = varied_model()
    tokens = tokens_of(model, 2)
    decoder = decoder_for(model, 2)
    wrong = (tokens + 3) % 16
    wrong[:, :3] = tokens[:, :3]
    all_at_once(decoder, wrong)
    again = feed(decoder, tokens[:, 3:], torch.arange(3, 16).expand(2, 13))
    assert error(again, model(tokens, use_cache=False).logits[:, 3:]) < 2e-6


@pytest.mark.parametrize("num_fed", [1, 4])
def test_feeding_a_finished_image_again_changes_nothing(num_fed):
    model = varied_model()
    tokens = tokens_of(model, 2)
    decoder = decoder_for(model, 2)
    all_at_once(decoder, tokens)
    last = torch.full((2, num_fed), 15)
    first = feed(decoder, tokens.gather(1, last), last)
    kept = [tensor.clone() for tensor in (*decoder.cache.keys, *decoder.cache.values)]
    assert torch.equal(feed(decoder, tokens.gather(1, last), last), first)
    assert all(map(torch.equal, kept, (*decoder.cache.keys, *decoder.cache.values)))


@pytest.mark.parametrize("num_pixels", [16, 200])
def test_how_far_attention_looks_changes_no_pixel(num_pixels):
    model = varied_model(num_pixels=num_pixels)
    tokens = tokens_of(model, 2)
    decoder, positions = decoder_for(model, 2), torch.arange(16).expand(2, 16)
    near, far = (decoder.feed(tokens[:, :16], positions, decoder.cache.rounded(n)) for n in (16, num_pixels))
    assert error(near, far) < 1e-6


@pytest.mark.parametrize(("cache_dtype", "rounding"), [(torch.float32, 0.0), (torch.bfloat16, 2**-8)])
def test_keys_and_values_are_stored_in_the_dtype_asked_for(cache_dtype, rounding):
    model = varied_model()
    tokens = tokens_of(model, 2)
    decoder = decoder_for(model, 2, cache_dtype)
    assert {tensor.dtype for tensor in (*decoder.cache.keys, *decoder.cache.values)} == {cache_dtype}
    logits = all_at_once(decoder, tokens)
    assert logits.dtype == torch.float32
    wrong = error(logits, model(tokens, use_cache=False).logits)
    assert wrong < 2e-6 + 2 * rounding
    assert wrong >= rounding / 16


@pytest.mark.parametrize(("num_images", "num_prompts"), [(6, 1), (6, 2), (6, 3), (1, 1), (4, 4)])
@pytest.mark.parametrize("num_fed", [1, 5])
@pytest.mark.parametrize("num_given", [1, 70])
def test_what_prompts_share_is_seen_by_the_images_that_continue_them(num_images, num_prompts, num_fed, num_given):
    """As if each image had read its prompt itself; images of a prompt lie one after the other."""
    model = varied_model("heads pruned", num_pixels=100)
    tokens = tokens_of(model, num_images)
    each = num_images // num_prompts
    tokens[:, :num_given] = tokens[::each, :num_given].repeat_interleave(each, dim=0)
    cache = StaticCache(model, num_images, torch.float32, num_given)
    cache.share([prefilled(model, part) for part in tokens[::each, :num_given].split(2)])
    decoder = Decoder(freeze(model, "float32", in_place=False), cache, None)
    windows = torch.arange(num_given, 100).split(num_fed)
    logits = [feed(decoder, tokens[:, window], window.expand(num_images, -1)) for window in windows]
    assert error(torch.cat(logits, dim=1), model(tokens, use_cache=False).logits[:, num_given:]) < 2e-6


def prefilled(model, tokens):
    past = DynamicCache(config=model.config)
    model.transformer(tokens, past_key_values=past, use_cache=True)
    return past


class TestStaticCache:
    def test_lengths_are_rounded_up_to_whole_buckets(self):
        cache = StaticCache(varied_model(num_pixels=200), 1, torch.float32)
        lengths = [1, BUCKET - 1, BUCKET, BUCKET + 1, 128, 192, 193, 200]
        assert [cache.rounded(length) for length in lengths] == [64, 64, 64, 128, 128, 192, 256, 256]
        assert cache.slots.tolist() == list(range(256))

    def test_room_is_made_for_what_images_do_not_share(self):
        cache = StaticCache(varied_model(num_pixels=200), 1, torch.float32, 100, 180)
        assert cache.slots.tolist() == list(range(100, 228))
        assert [cache.rounded(length) for length in (101, 164, 165, 180)] == [64, 64, 128, 128]
        assert cache.keys[0].shape == (1, 4, 128, 16)

    def test_there_is_room_for_the_heads_that_are_left(self):
        model = varied_model("heads pruned")
        cache = StaticCache(model, 2, torch.bfloat16, 5)
        assert [tensor.shape for tensor in cache.keys] == [(2, 2, 64, 16), (2, 4, 64, 16), (2, 3, 64, 16)]
        assert cache.nbytes == 2 * 2 * (2 + 4 + 3) * 64 * 16 * 2
        cache.share([prefilled(model, tokens_of(model, 1)[:, :5])])
        assert cache.nbytes == 2 * (2 + 4 + 3) * (2 * 64 + 5) * 16 * 2

    @pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16])
    def test_prompts_are_copied_to_the_images_that_continue_them(self, cache_dtype):
        model = varied_model()
        past = prefilled(model, tokens_of(model, 3)[:, :5])
        cache = StaticCache(model, 6, cache_dtype)
        cache.fill(past, torch.tensor([4, 0, 5, 2]), torch.tensor([2, 0, 2, 1]))
        for block in range(3):
            for stored, new in (
                (cache.keys[block], past.layers[block].keys),
                (cache.values[block], past.layers[block].values),
            ):
                for image, row in ((4, 2), (0, 0), (5, 2), (2, 1)):
                    assert torch.equal(stored[image, :, :5], new[row].to(cache_dtype))
                assert not stored[[1, 3]].any()
                assert not stored[:, :, 5:].any()


@pytest.mark.parametrize("positions", [[[12, 10], [11, 13]], [[13, 11]]])
def test_new_keys_go_where_their_positions_say(positions):
    """Ten positions are shared and lie elsewhere; four of the others are looked at."""
    positions, slots = torch.tensor(positions), torch.arange(10, 14)
    num_images = len(positions)
    keys, values = torch.zeros(num_images, 2, 5, 3), torch.zeros(num_images, 2, 5, 3)
    new_keys, new_values = torch.randn(num_images, 2, 2, 3), torch.randn(num_images, 2, 2, 3)
    given_keys, given_values = BlockCache(keys, values, positions, slots).update(new_keys, new_values, 7)
    assert torch.equal(given_keys, keys[:, :, :4])
    assert torch.equal(given_values, values[:, :, :4])
    for image, places in enumerate((positions - 10).tolist()):
        for index, place in enumerate(places):
            assert torch.equal(keys[image, :, place], new_keys[image, :, index])
            assert torch.equal(values[image, :, place], new_values[image, :, index])
        others = sorted(set(range(5)) - set(places))
        assert not keys[image][:, others].any()
        assert not values[image][:, others].any()


@pytest.mark.parametrize(
    ("prompts", "num"),
    [
        ([], 0), ([""], 0), (["ab"], 0), (["", ""], 0), (["ab", "cd"], 0), (["ab", "ab"], 1), (["ab"] * 5, 1),
        (["ab", "ab", "cd", "cd"], 2), (["ab", "ab", "cd", "cd", "ab", "ab"], 3), (["ab", "ab", "cd"], 0),
        (["ab", "cd", "cd"], 0), (["ab", "ab", "cd", "cd", "cd", "cd"], 0), (["ab", "ab", "abc", "abc"], 0),
        (["a", "a"], 0),
    ],
)  # fmt: skip
def test_which_images_share_prompts(prompts, num):
    """Equal numbers of images, in a row, for each prompt; a single pixel is not worth it."""
    assert num_shared_prompts([torch.tensor([ord(letter) for letter in prompt]) for prompt in prompts]) == num
