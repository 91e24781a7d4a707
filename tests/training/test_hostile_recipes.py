"""Recipes that somebody else wrote: one sentence, at once, whatever is in them."""

import time

import pytest

from imagegpt.training.recipe_io import read_recipe

GOOD = "model: {n_layer: 1, n_embd: 8, n_head: 1}\ntraining: {num_steps: 9, warmup_steps: 1}\n"


def laughs(levels=30):
    """A few lines that stand for 10^30 words."""
    lines = ["- &a0 [ha, ha]"]
    lines += [f"- &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines)


def with_train(value):
    return f"{GOOD}data: {{train: {value}}}\n"


HOSTILE = {
    "nested anchors": (laughs(), "no YAML (*a0 is an alias, which recipes cannot have: write the value out"),
    "an anchor in itself": (with_train("&a [*a]"), "no YAML (*a is an alias"),
    "a merged alias": (GOOD + "card: &c {title: x}\ndata: {<<: *c, train: digits}", "no YAML (*c is an alias"),
    "deep lists": ("[" * 60_000, "no YAML (it is nested too deeply, in line 1)"),
    "deep objects": ("{a: " * 15_000, "no YAML (it is nested too deeply, in line 1)"),
    "deep blocks": ("- " * 30_000, "no YAML (it is nested too deeply, in line 1)"),
    "gigabytes": ("# " + "x" * 70_000, "has more than 65,536 bytes: it is no recipe"),
    "binary": ("\x00\x01\x02", "no YAML (unacceptable character #x0000: special characters are not allowed"),
    "a long row of digits": (with_train("1" * 60_000), "no YAML ("),
    "5,000 digits": (with_train("9" * 5000), "no YAML ('999999999999999999999999999999999999999…' is no int"),
    "hexadecimal digits": (with_train("0x" + "f" * 50_000), "no YAML (a number has too many digits, in line 3)"),
    "base 60": (with_train("1" + ":1" * 30_000), "no YAML (a number has too many digits, in line 3)"),
    "a list as a key": (with_train("{? [a] : b}"), "no YAML (found unhashable key, in line 3)"),
    "a key twice": (GOOD + "data: {train: a, train: b}", "no YAML (train is given twice, in line 3)"),
    "no such day": (with_train("2001-13-45"), "no YAML ('2001-13-45' is no timestamp, in line 3)"),
    "maybe": (with_train("!!bool maybe"), "no YAML ('maybe' is no bool, in line 3)"),
    "an empty number": (with_train("!!int ''"), "no YAML ('' is no int, in line 3)"),
    "never": (with_train("!!timestamp never"), "no YAML ('never' is no timestamp, in line 3)"),
    "code": (with_train("!!python/object/apply:os.system [x]"), "no YAML (could not determine a constructor for"),
    "a long value": (with_train("[" + "x, " * 9000 + "x]"), "data.train is a list of 9,001 entries: it must be text"),
    "a long key": (GOOD + f"data: {{{'k' * 1000}: 1, train: digits}}", f"there is no data.{'k' * 74}… in a"),
    "control characters": (GOOD + 'data: {"\\e[2J": 1, train: digits}', "there is no data.\\x1b[2J in a recipe"),
    "a number as a key": (GOOD + "data: {1: 2, train: digits}", "data"),
    "another encoding": ("model: ä".encode("utf-16"), "no YAML (it is not UTF-8): check it, or save it as UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_is_one_sentence_at_once(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.perf_counter()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        read_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.perf_counter() - start < 10


def test_what_looks_like_a_number_with_an_exponent_takes_no_time(tmp_path):
    (tmp_path / "recipe.yaml").write_text(with_train("1" * 50_000 + "x"))
    start = time.perf_counter()
    assert len(read_recipe(tmp_path / "recipe.yaml").data.train) == 50_001
    assert time.perf_counter() - start < 5


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + with_train("digits").encode())
    assert read_recipe(tmp_path / "recipe.yaml").data.train == "digits"


@pytest.mark.parametrize("value", ["[*a]", "9" * 5000, "!!bool maybe", "[" * 3000])
def test_a_hostile_change_is_one_sentence(tmp_path, value):
    (tmp_path / "recipe.yaml").write_text(with_train("digits"))
    with pytest.raises(ValueError, match="is no YAML value, put it in quotes"):
        read_recipe(tmp_path / "recipe.yaml", [f"data.train={value}"])
