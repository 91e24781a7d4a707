"""What can be known at once about models and images that a user names, before torch is imported."""

from pathlib import Path

from imagegpt.checkpoints.registry import CONFIG_FILE, resolve


def check_model(name: str, revision: str | None = None) -> None:
    """See that a name stands for a model, which takes no torch.

    Raises: ValueError or FileNotFoundError, in one sentence, if not.
    """
    check_utf8(name)
    source = resolve(name)
    if source.folder is not None and not (source.folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{source.folder} holds no {CONFIG_FILE}: give a folder that save_pretrained has written"
        )
    if source.folder is not None and revision is not None:
        raise ValueError(f"revision {revision!r} was given for {name!r}, which is not on the hub: leave it out")


def check_utf8(path: str | Path) -> None:
    """See that models can be kept at a path: safetensors opens no other.

    Raises: ValueError if it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} is not UTF-8, and no name for a model's files: choose another name") from None


def check_source(name: str) -> None:
    """See that there is something where the path of images leads; what it is, and other names, are looked at later.

    Raises: FileNotFoundError if there is nothing.
    """
    is_path = name.startswith(("./", "../")) or Path(name).is_absolute()
    if is_path and not Path(name).exists():
        raise FileNotFoundError(f"{name!r} does not exist: check the path")


def check_images(paths: list[Path]) -> None:
    """See that files are there.

    Raises: FileNotFoundError for the first that is not.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no image {path}: check the path")


def check_palette(said: str) -> None:
    """See that a name or path stands for something that may hold a palette.

    Raises: ValueError if it stands for nothing.
    """
    try:
        if not Path(said).is_file():
            resolve(said)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"there is no palette {said!r}: give a .npy file or a folder that imagegpt palette fit made, or the "
            "name or folder of a model (see imagegpt models)"
        ) from error


def check_parent(out: Path) -> None:
    """See that a folder can be made, or is there.

    Raises: FileNotFoundError if there is no folder to make it in.
    """
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}: make it first, or choose another place")


def check_prefix(prefix: Path) -> None:
    """See that there is a checkpoint of TensorFlow with this prefix; its files may be damaged all the same.

    Raises: FileNotFoundError or IsADirectoryError if there is none.
    """
    if is_prefix(prefix):
        return
    if prefix.is_dir():
        raise IsADirectoryError(f"{prefix} is a folder: give what its files' names begin with, the path without .index")
    raise FileNotFoundError(f"there is no checkpoint of TensorFlow {prefix}: {prefix.name}.index is missing")


def is_prefix(prefix: Path) -> bool:
    """Whether there is a checkpoint of TensorFlow with this prefix; `.index` may be part of it."""
    return Path(f"{str(prefix).removesuffix('.index')}.index").is_file()
