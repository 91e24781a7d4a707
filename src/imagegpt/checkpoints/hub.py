"""Models on huggingface.co: fetching one into the hub's cache, and publishing one."""

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
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubOptions(TypedDict, total=False):
    """How files are fetched from the hub, under the names that transformers has for it.

    Attributes:
        revision: branch, tag or commit; None is the newest.
        cache_dir: where files are kept; None is the hub's own place, `~/.cache/huggingface/hub`, or, for a user without
            a home, one beside our own cache.
        force_download: fetch again what is there already.
        local_files_only: use what is in the cache, and do not reach for the network.
        token: a token of huggingface.co, for private and gated models; True or None is the one that 'hf auth login'
            stored, False is none.
    """

    revision: str | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool
    token: str | bool | None


def fetch(name: str, *, weights: bool = True, **options: Unpack[HubOptions]) -> Path:
    """Download (or find in the cache) the files of a model; safetensors if there are any.

    Args:
        name: on the hub, "owner/model".
        weights: False fetches the configuration, the palette and the model card only.
        **options: see `HubOptions`; each is used for every file.
    Returns: the folder they are in, all of one commit.
    Raises: ValueError if there is no such model or revision, or permission for it; ConnectionError if a file is neither
        here nor to be had; OSError if it cannot be written.
    """
    with _one_sentence(name, options):
        folder = Path(snapshot_download(name, allow_patterns=_SMALL_FILES, **_known(options)))
        if _COMMIT.fullmatch(folder.name):  # the branch may move before the weights are fetched
            options = {**options, "revision": folder.name}
        for pattern in ("*.safetensors", "*.bin"):
            if weights and (options.get("force_download") or not _has_weights(folder)):
                snapshot_download(name, allow_patterns=[pattern], **_known(options))
            if _has_weights(folder):
                break
    return folder


class PublishOptions(TypedDict, total=False):
    """How a model is published.

    Attributes:
        private: whether a new model is seen by its owner only; None is the owner's setting.
        token: with the right to write; see `HubOptions`.
        revision: the branch; None is the main one.
        commit_message: None is "Upload an ImageGPT".
        create_pr: propose the change instead of making it.
    """

    private: bool | None
    token: str | bool | None
    revision: str | None
    commit_message: str | None
    create_pr: bool


def publish(name: str, folder: Path, *, card: str | None, **options: Unpack[PublishOptions]) -> str:
    """Upload a folder as a model, which is made on the hub if it is not there.

    Args:
        name: on the hub, "owner/model", or "model" for the owner of the token.
        folder: what `save_pretrained` has written.
        card: the text of the model card; None writes a short one, unless the model on the hub has a card.
        **options: see `PublishOptions`.
    Returns: the address of the commit.
    Raises: ValueError if the name is none, or the token may not write there; ConnectionError without a connection.
    """
    api, revision = HfApi(token=options.get("token"), library_name="imagegpt"), options.get("revision")
    with _one_sentence(name, {"revision": revision}, publishing=True):
        repo = api.create_repo(name, private=options.get("private"), exist_ok=True).repo_id
        if card is None and not api.file_exists(repo, MODEL_CARD, revision=revision):
            card = str(_short_card(repo))
        if card is not None:
            (folder / MODEL_CARD).write_text(card, encoding="utf-8")
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=options.get("commit_message") or "Upload an ImageGPT",
            create_pr=options.get("create_pr", False),
        )
    return str(done.commit_url)


def _known(options: HubOptions) -> HubOptions:
    """Without those that are None: the hub has its own words for their defaults."""
    given = {key: value for key, value in options.items() if value is not None}
    if HF_HUB_CACHE.startswith("~"):  # nobody knows this user's home, without which the hub's functions fail
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
def _one_sentence(name: str, options: HubOptions, *, publishing: bool = False) -> Iterator[None]:
    """Turn the hub's errors into one sentence each."""
    revision = options.get("revision")
    what = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    known = f"known are {', '.join(HUB_MODELS)}"
    try:
        yield
    except GatedRepoError:
        raise ValueError(
            f"{what} needs permission on the hub: ask for it there and log in with 'hf auth login', or give a token"
        ) from None
    except RepositoryNotFoundError:
        if publishing:
            raise ValueError(f"{what} cannot be made or reached on the hub: {_PERMISSION}") from None
        raise ValueError(
            f"there is no model {what} on the hub: {known}, and private ones need 'hf auth login' or a token"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"there is no model {what} on the hub: give an existing branch, tag or commit") from None
    except HFValidationError as error:
        raise ValueError(f"{what} is no name on the hub ({error}): {known}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError) as error:
        raise _unreachable(what, options, error, publishing) from error
    except OSError as error:
        if error.errno not in _OF_DISKS:
            raise
        raise OSError(
            f"{what} cannot be kept on this machine ({error.strerror}): make room in the hub's cache, or set HF_HOME "
            "to another place"
        ) from error


_PERMISSION = "log in with 'hf auth login', or give a token, that may write there"


def _unreachable(what: str, options: HubOptions, error: Exception, publishing: bool) -> Exception:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if publishing and status in (401, 403):
        return ValueError(f"{what} cannot be written ({status}): {_PERMISSION}")
    if publishing:
        return ConnectionError(f"{what} cannot be written, huggingface.co cannot be reached: connect to the internet")
    if options.get("local_files_only"):
        where = f"the cache {options['cache_dir']}" if options.get("cache_dir") else "the hub's cache"  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return ConnectionError(
            f"{what} is not in {where} and local_files_only is True: leave that out to fetch it, or give a folder"
        )
    return ConnectionError(
        f"{what} is not on this machine and huggingface.co cannot be reached: connect to the internet, "
        "or give a bundled model or a folder"
    )
