"""`imagegpt models`: every known model."""

import json

from imagegpt.checkpoints.registry import HUB_MODELS, bundled_models


def test_every_known_model_is_listed(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    status, out, err = run("models")
    assert (status, err) == (0, "")
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert [*HUB_MODELS, "any folder"] == [name for name in lines if name in [*HUB_MODELS, "any folder"]]
    for model in bundled_models():
        assert "in the package" in lines[model.name]


def test_models_as_json(run):
    status, out, err = run("models", "--json")
    assert (status, err) == (0, "")
    models = {model["name"]: model for model in json.loads(out)["models"]}
    assert list(models) == [*(model.name for model in bundled_models()), *HUB_MODELS]
    assert models["digits"]["location"] == "in the package"
