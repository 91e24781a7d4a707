"""Download from and upload to the hub, offline: with cache folders and a mocked client."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from imagegpt import (
    ColorPalette,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTImageProcessor,
    ImageGPTPipeline,
)
from imagegpt.checkpoints import hub
from imagegpt.checkpoints.loading import find_folder

FIELDS = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
NAME = "owner/tiny"
COMMIT, LATER = "a" * 40, "b" * 40


@pytest.fixture
def folder(tmp_path):
    """A saved model, with a card."""
    config = ImageGPTConfig(**FIELDS, initializer_range=0.5)
    pipe = ImageGPTPipeline(
        ImageGPTForCausalImageModeling(config), ImageGPTImageProcessor(ColorPalette.grey(10), size=4)
    )
    pipe.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n\nA card.\n")
    return tmp_path / "tiny"


@pytest.fixture
def cache(folder, tmp_path):
    """A hub cache after a download of `main` and of the tag `v1`."""
    root = tmp_path / "cache"
    model = root / "models--owner--tiny"
    for ref, commit in (("main", COMMIT), ("v1", LATER)):
        shutil.copytree(folder, model / "snapshots" / commit)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / ref).write_text(commit)
    weights = model / "snapshots" / LATER / "model.safetensors"
    later = ImageGPTForCausalImageModeling(ImageGPTConfig(**FIELDS, initializer_range=0.2))
    weights.unlink()
    later.save_pretrained(weights.parent)
    return root


def test_a_model_in_a_cache_loads_without_a_network(cache, folder):
    pipe = ImageGPTPipeline.from_pretrained(NAME, cache_dir=cache, local_files_only=True)
    local = ImageGPTPipeline.from_pretrained(folder)
    assert [image.tobytes() for image in pipe.sample(2)] == [image.tobytes() for image in local.sample(2)]
    tagged = ImageGPTPipeline.from_pretrained(NAME, cache_dir=cache, local_files_only=True, revision="v1")
    assert not torch.equal(tagged.model.lm_head.weight, pipe.model.lm_head.weight)
    assert find_folder(NAME, cache_dir=cache, local_files_only=True, revision=LATER).name == LATER


def test_missing_from_cache_is_one_sentence(cache, tmp_path):
    with pytest.raises(
        ConnectionError, match=rf"^'owner/other' is not in the cache {cache} and local_files_only is True: leave that"
    ):
        ImageGPTPipeline.from_pretrained("owner/other", cache_dir=cache, local_files_only=True)
    with pytest.raises(ConnectionError, match=r"^'owner/tiny' at revision 'v2' is not in the cache"):
        ImageGPTPipeline.from_pretrained(NAME, cache_dir=cache, local_files_only=True, revision="v2")
    with pytest.raises(ConnectionError, match=r"is not in the hub's cache and local_files_only is True"):
        ImageGPTPipeline.from_pretrained("owner/other", local_files_only=True)


OPTIONS = [
    {"revision": "v1"},
    {"cache_dir": "here"},
    {"force_download": True},
    {"local_files_only": True},
    {"token": "hf_x"},
    {"token": False},
]


@pytest.fixture
def fetched(folder, monkeypatch):
    """Record the calls to the hub's client, without downloads."""
    calls = []

    def fetch(name, *, allow_patterns, **options):
        calls.append((name, allow_patterns, options))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", "/home/somebody/.cache")  # also where the tests' user has no home
    return calls


def test_without_home_hub_files_are_in_our_cache(folder, fetched, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find_folder(NAME)
    find_folder(NAME, cache_dir="here")
    assert [options["cache_dir"] for *_, options in fetched] == [tmp_path / "imagegpt" / "huggingface", "here"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_apply_to_every_download(folder, fetched, options, monkeypatch):
    monkeypatch.setattr(hub, "_has_weights", lambda _: False)  # so that all three kinds of files are fetched
    ImageGPTPipeline.from_pretrained(NAME, **options)
    assert [patterns for _, patterns, _ in fetched] == [hub._SMALL_FILES, ["*.safetensors"], ["*.bin"]]
    assert all(given == options for *_, given in fetched)
    assert {name for name, *_ in fetched} == {NAME}


def test_every_option_of_the_hub_is_tested_above():
    assert {name for options in OPTIONS for name in options} == set(hub.HubOptions.__annotations__)


def test_pickles_are_downloaded_only_without_safetensors(folder, fetched):
    assert find_folder(NAME) == folder
    (folder / "model.safetensors").unlink()
    find_folder(NAME, weights=False)
    find_folder(NAME)
    small = hub._SMALL_FILES
    assert [patterns for _, patterns, _ in fetched] == [small, small, small, ["*.safetensors"], ["*.bin"]]
    assert all(options == {} for *_, options in fetched)


def test_force_download_includes_weights(folder, fetched):
    find_folder(NAME, force_download=True)
    assert [patterns for _, patterns, _ in fetched] == [hub._SMALL_FILES, ["*.safetensors"]]


def test_all_files_are_of_one_commit(cache, monkeypatch):
    """If the branch moves between the calls, weights and configuration must still be of one commit."""
    snapshot = cache / "models--owner--tiny" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    seen = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, **options: seen.append(options.get("revision")) or str(snapshot)
    )
    find_folder(NAME, revision="main")
    assert seen == ["main", COMMIT, COMMIT]


def answer(status):
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (GatedRepoError("x", response=answer(403)), ValueError, "'owner/tiny' needs permission on the hub: request it"),
        (RepositoryNotFoundError("x", response=answer(404)), ValueError, "there is no model 'owner/tiny' on the hub"),
        (RevisionNotFoundError("x", response=answer(404)), ValueError, "give an existing branch, tag or commit"),
        (HFValidationError("odd"), ValueError, r"'owner/tiny' is not a valid name on the hub \(odd\)"),
        (HfHubHTTPError("x", response=answer(500)), ConnectionError, "huggingface.co cannot be reached: connect to"),
        (OSError(28, "No space left on device"), OSError, r"stored on this machine \(No space left .*\): free some"),
        (ConnectionError("x"), ConnectionError, "huggingface.co cannot be reached: connect to the internet, or give"),
    ],
)
def test_the_hubs_errors_are_one_sentence_each(monkeypatch, error, kind, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(kind, match=message) as raised:
        find_folder(NAME)
    assert "\n" not in str(raised.value)


# Publishing


class Hub:
    """A mock of `HfApi` that records calls and uploads."""

    def __init__(self, *, has_card=False, error=None):
        self.has_card, self.error, self.calls, self.files = has_card, error, [], {}

    def __call__(self, **made_with):
        self.calls.append(("made", made_with))
        return self

    def create_repo(self, name, **options):
        if self.error is not None:
            raise self.error
        self.calls.append(("create_repo", name, options))
        return type("Url", (), {"repo_id": name if "/" in name else f"me/{name}"})

    def file_exists(self, name, file, **options):
        return self.has_card

    def upload_folder(self, *, repo_id, folder_path, **options):
        self.calls.append(("upload_folder", repo_id, options))
        self.files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        return type("Commit", (), {"commit_url": f"https://huggingface.co/{repo_id}/commit/{COMMIT}"})


@pytest.fixture
def api(monkeypatch):
    stand_in = Hub()
    monkeypatch.setattr(hub, "HfApi", stand_in)
    return stand_in


def test_upload_of_model_processor_and_card(folder, api, tmp_path):
    pipe = ImageGPTPipeline.from_pretrained(folder)
    address = pipe.push_to_hub(NAME, private=True, token="hf_x", revision="dev", commit_message="New", create_pr=True)
    assert address == f"https://huggingface.co/owner/tiny/commit/{COMMIT}"
    assert api.calls == [
        ("made", {"token": "hf_x", "library_name": "imagegpt"}),
        ("create_repo", NAME, {"private": True, "exist_ok": True}),
        ("upload_folder", NAME, {"revision": "dev", "commit_message": "New", "create_pr": True}),
    ]
    assert api.files["README.md"] == (folder / "README.md").read_bytes()  # its own card, with its licence
    again = tmp_path / "again"
    again.mkdir()
    for name, content in api.files.items():
        (again / name).write_bytes(content)
    loaded = ImageGPTPipeline.from_pretrained(again)
    assert [image.tobytes() for image in loaded.sample(2)] == [image.tobytes() for image in pipe.sample(2)]


def test_a_model_without_a_card_gets_a_short_one(folder, api):
    (folder / "README.md").unlink()
    ImageGPTPipeline.from_pretrained(folder).push_to_hub("tiny")
    card = api.files["README.md"].decode()
    assert card.startswith("---\n")
    assert "library_name: imagegpt" in card
    assert 'ImageGPTPipeline.from_pretrained("me/tiny")' in card
    assert api.calls[-1] == ("upload_folder", "me/tiny", {
        "revision": None, "commit_message": "Upload an ImageGPT", "create_pr": False,
    })  # fmt: skip


def test_existing_card_on_hub_is_kept(folder, api):
    (folder / "README.md").unlink()
    api.has_card = True
    ImageGPTPipeline.from_pretrained(folder).push_to_hub(NAME)
    assert "README.md" not in api.files
    assert set(api.files) == {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"}


def test_card_is_downloaded_with_model(cache):
    pipe = ImageGPTPipeline.from_pretrained(NAME, cache_dir=cache, local_files_only=True)
    assert pipe._card is not None
    assert "# Tiny" in pipe._card


def test_quantized_weights_are_not_uploaded(folder, api):
    pipe = ImageGPTPipeline.from_pretrained(folder, precision="int8")
    with pytest.raises(ValueError, match="rounded to int8 for sampling"):
        pipe.push_to_hub(NAME)
    assert api.calls == []


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            HfHubHTTPError("x", response=answer(403)),
            ValueError,
            r"^cannot upload 'owner/tiny' \(403\): log in with",
        ),
        (
            HfHubHTTPError("x", response=answer(401)),
            ValueError,
            r"^cannot upload 'owner/tiny' \(401\): log in with",
        ),
        (
            RepositoryNotFoundError("x", response=answer(404)),
            ValueError,
            "cannot be created or reached on the hub: log in",
        ),
        (ConnectionError("x"), ConnectionError, "^cannot upload 'owner/tiny', huggingface.co cannot be reached"),
    ],
)
def test_upload_errors_are_one_sentence(folder, api, error, kind, message):
    api.error = error
    with pytest.raises(kind, match=message) as raised:
        ImageGPTPipeline.from_pretrained(folder).push_to_hub(NAME)
    assert "\n" not in str(raised.value)


def test_hub_options_are_ignored_for_folders(folder):
    """As in transformers, except for a revision, which cannot be honoured."""
    ImageGPTPipeline.from_pretrained(folder, token="hf_x", local_files_only=True, cache_dir="x", force_download=True)
    with pytest.raises(ValueError, match=r"^revision 'main' was given for .*tiny', which is not on the hub: leave it"):
        ImageGPTPipeline.from_pretrained(folder, revision="main", token="hf_x")
    assert json.loads((folder / "config.json").read_text())["n_embd"] == 16
