import re

import pytest

from imagegpt.training.recipe_files import bundled_recipes, find_recipe
from imagegpt.training.recipe_io import read_recipe

TEXT = """\
model: {n_layer: 1, n_embd: 8, n_head: 1}
data: {train: digits}
training:
  num_steps: 1_000
  learning_rate: 3e-4
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(("text", "value"), [("3e-4", 0.0003), ("1E2", 100.0), ("+.5e+1", 5.0), ("2.e-1", 0.2)])
def test_numbers_with_an_exponent_are_numbers(recipe, text, value):
    """PyYAML takes 3e-4 for text: YAML 1.1 wants a dot."""
    assert read_recipe(recipe).training.learning_rate == 0.0003
    assert read_recipe(recipe, [f"training.learning_rate={text}"]).training.learning_rate == value


def test_what_looks_like_a_number_in_quotes_is_text(recipe):
    assert read_recipe(recipe, ["data.train='3e-4'"]).data.train == "3e-4"


def test_changes_come_last(recipe):
    read = read_recipe(recipe, ["training.batch_size=4", "training.batch_size=2", "monitoring.trackers=[tensorboard]"])
    assert (read.training.batch_size, read.monitoring.trackers, read.training.num_steps) == (2, ("tensorboard",), 1000)


def test_a_value_may_hold_an_equals_sign(recipe):
    assert read_recipe(recipe, ["data.train=a=b"]).data.train == "a=b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.batch_size", "--set training.batch_size is no change: write key=value, for example"),
        ("=3", "--set =3 is no change"),
        ("training..batch_size=3", "--set training..batch_size=3 is no change"),
        ("batch_size=3", "--set batch_size=3: batch_size is no key of a recipe, write section.key=value; the sections"),
        ("training.batch_size.x=3", "--set training.batch_size.x=3: training.batch_size.x is no key of a recipe"),
        ("trainings.batch_size=3", "trainings.batch_size is no key of a recipe"),
        ("training.batch_size=[3", "--set training.batch_size=[3: '[3' is no YAML value, put it in quotes"),
        ("training.batch=3", "there is no training.batch in a recipe: training has num_steps, batch_size"),
    ],
)
def test_changes_that_are_none(recipe, change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_recipe(recipe, [change])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no recipe: it must have the keys model, data, training, objective, monitoring, card"),
        (b"- model\n- data\n", "holds no recipe"),
        (b"1: 2\n", "holds no recipe"),
        (b"model: {n_layer: 1\n", "is no YAML ("),
        (b"model:\n\t- x: 1\n", "is no YAML ("),
        (b"\xff\xfe\x00", "is no YAML ("),
        (b"training: !!python/object:os.system {}\n", "is no YAML ("),
        (b"training: {num_steps: 1, num_steps: 2}\n", "num_steps is given twice, in line 1"),
        (b"model: 1\nmodel: 2\n", "model is given twice, in line 2"),
        (b"model: 1\n2: x\n", "holds no recipe"),
        (b"model: {1: 2}\n", "model"),
        (b"model: {[1, 2]: 2}\n", "is no YAML"),
    ],
)
def test_files_that_hold_no_recipe(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_an_empty_section_can_be_filled(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text(TEXT + "monitoring:\ncard:\n")
    assert read_recipe(path, ["monitoring.samples=3"]).monitoring.samples == 3


def test_finding():
    assert find_recipe("digits") == bundled_recipes()["digits"]
    with pytest.raises(
        ValueError, match=r"there is no recipe 'digit': choose one of .*digits.*, or give a \.yaml file"
    ):
        find_recipe("digit")
    with pytest.raises(ValueError, match=r"there is no recipe no/such\.yaml: check the path"):
        find_recipe("no/such.yaml")


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_every_recipe_that_ships_can_be_read_and_begins_with_its_command(name):
    path = bundled_recipes()[name]
    recipe = read_recipe(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (
        f"imagegpt {name.replace('-digits', ' digits') if name.startswith('finetune') else f'train {name}'} "
        in lines[0]
    )
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert "Cost:" in head
    assert "Expect" in head
    assert recipe.training.num_steps > recipe.training.warmup_steps
