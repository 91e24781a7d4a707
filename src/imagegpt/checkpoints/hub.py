"""Models on huggingface.co: download into the hub's cache, and upload."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, Unpack

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from imagegpt.checkpoints.registry import HUB_MODELS, MODEL_CARD
from imagegpt.files.paths import cache_folder

_SMALL_FILES = ["*.json", "*.npy", MODEL_CARD]
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubOptions(TypedDict, total=False):
    """Options for downloads from the hub, with transformers' names.

    Attributes:
        revision: branch, tag or commit; None is the main branch.
        cache_dir: None is the hub's default, `~/.cache/huggingface/hub`, or, for a user without a home folder, a folder
            next to our own cache.
        force_download: download again even if the files are cached.
        local_files_only: use the cache only, without network access.
        token: of huggingface.co, for private and gated models; True or None uses the token stored by 'hf auth login',
            False none.
    """

    revision: str | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool
    token: str | bool | None


def download_model(name: str, *, weights: bool = True, **options: Unpack[HubOptions]) -> Path:
    """Download a model's files, unless they are cached; prefer safetensors.

    Args:
        name: on the hub, "owner/model".
        weights: False downloads only the configuration, the palette and the model card.
        **options: see `HubOptions`; they apply to every file.
    Returns: their folder; all files are of one commit.
    Raises: ValueError if there is no such model or revision, or no permission; ConnectionError if a file is not cached
        and cannot be downloaded; OSError if it cannot be written.
    """
    with _translate_errors(name, options):
        folder = Path(snapshot_download(name, allow_patterns=_SMALL_FILES, **_drop_defaults(options)))
        if _COMMIT.fullmatch(folder.name):  # the branch may move before the weights are downloaded
            options = {**options, "revision": folder.name}
        for pattern in ("*.safetensors", "*.bin"):
            if weights and (options.get("force_download") or not _has_weights(folder)):
                snapshot_download(name, allow_patterns=[pattern], **_drop_defaults(options))
            if _has_weights(folder):
                break
    return folder


class UploadOptions(TypedDict, total=False):
    """Options for uploads to the hub, with transformers' names.

    Attributes:
        private: visibility of a new model; None is the owner's default.
        token: with write permission; see `HubOptions`.
        revision: the branch; None is the main branch.
        commit_message: None is "Upload an ImageGPT".
        create_pr: open a pull request instead of committing.
    """

    private: bool | None
    token: str | bool | None
    revision: str | None
    commit_message: str | None
    create_pr: bool


def upload_model(name: str, folder: Path, *, card: str | None, **options: Unpack[UploadOptions]) -> str:
    """Upload a folder as a model, which is created on the hub if needed.

    Args:
        name: on the hub, "owner/model", or "model" for the owner of the token.
        folder: written by `save_pretrained`.
        card: the text of the model card; None writes a short one, unless the model on the hub has a card.
    Returns: the URL of the commit.
    Raises: ValueError if the name is invalid, or the token lacks write permission; ConnectionError if the hub cannot be
        reached.
    """
    api, revision = HfApi(token=options.get("token"), library_name="imagegpt"), options.get("revision")
    with _translate_errors(name, {"revision": revision}, is_upload=True):
        repo = api.create_repo(name, private=options.get("private"), exist_ok=True).repo_id
        if card is None and not api.file_exists(repo, MODEL_CARD, revision=revision):
            card = str(_short_card(repo))
        if card is not None:
            (folder / MODEL_CARD).write_text(card, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=options.get("commit_message") or "Upload an ImageGPT",
            create_pr=options.get("create_pr", False),
        )
    return str(commit.commit_url)


def _drop_defaults(options: HubOptions) -> HubOptions:
    """Drop options that are None, so that the hub's own defaults apply; without a home folder, add a cache folder."""
    given = {key: value for key, value in options.items() if value is not None}
    if HF_HUB_CACHE.startswith("~"):  # there is no home folder: the hub's functions would fail
        given.setdefault("cache_dir", cache_folder() / "huggingface")
    return HubOptions(**given)  # pyright: ignore[reportArgumentType]


def _has_weights(folder: Path) -> bool:
    return bool([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def _short_card(name: str) -> ModelCard:
    data = ModelCardData(library_name="imagegpt", tags=["imagegpt"], pipeline_tag="unconditional-image-generation")
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {name.rpartition('/')[2]}\n\n"
        "An ImageGPT: it models images pixel by pixel.\n\n"
        "```python\nfrom imagegpt import ImageGPTPipeline\n\n"
        f'pipe = ImageGPTPipeline.from_pretrained("{name}")\n```\n'
    )


@contextmanager
def _translate_errors(name: str, options: HubOptions, *, is_upload: bool = False) -> Iterator[None]:
    """Translate the hub's errors to one sentence each."""
    revision = options.get("revision")
    model = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    known = f"known are {', '.join(HUB_MODELS)}"
    try:
        yield
    except GatedRepoError:
        raise ValueError(
            f"{model} needs permission on the hub: request it there and log in with 'hf auth login', or give a token"
        ) from None
    except RepositoryNotFoundError:
        if is_upload:
            raise ValueError(f"{model} cannot be created or reached on the hub: {_PERMISSION}") from None
        raise ValueError(
            f"there is no model {model} on the hub: {known}, and private ones need 'hf auth login' or a token"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"there is no model {model} on the hub: give an existing branch, tag or commit") from None
    except HFValidationError as error:
        raise ValueError(f"{model} is not a valid name on the hub ({error}): {known}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError) as error:
        raise _connection_error(model, options, error, is_upload) from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise OSError(
            f"{model} cannot be stored on this machine ({error.strerror}): free some space in the hub's cache, or set "
            "HF_HOME to another path"
        ) from error


_PERMISSION = "log in with 'hf auth login', or give a token, with write permission"


def _connection_error(model: str, options: HubOptions, error: Exception, is_upload: bool) -> Exception:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if is_upload and status in (401, 403):
        return ValueError(f"cannot upload {model} ({status}): {_PERMISSION}")
    if is_upload:
        return ConnectionError(f"cannot upload {model}, huggingface.co cannot be reached: connect to the internet")
    if options.get("local_files_only"):
        cache = f"the cache {options['cache_dir']}" if options.get("cache_dir") else "the hub's cache"  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return ConnectionError(
            f"{model} is not in {cache} and local_files_only is True: leave that out to download it, or give a folder"
        )
    return ConnectionError(
        f"{model} is not on this machine and huggingface.co cannot be reached: connect to the internet, "
        "or give a bundled model or a folder"
    )
