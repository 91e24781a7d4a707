"""Fast checks of models, images and paths, before torch is imported."""

from pathlib import Path

from imagegpt.checkpoints.registry import CONFIG_FILE, find_local_folder


def check_model(name: str, revision: str | None = None) -> None:
    """Check that a model exists, without importing torch.

    Raises: ValueError or FileNotFoundError if not.
    """
    check_utf8(name)
    folder = find_local_folder(name)
    if folder is not None and not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} contains no {CONFIG_FILE}: give a folder written by save_pretrained")
    if folder is not None and revision is not None:
        raise ValueError(f"revision {revision!r} was given for {name!r}, which is not on the hub: leave it out")


def check_utf8(path: str | Path) -> None:
    """Check that a path is valid UTF-8, which safetensors requires.

    Raises: ValueError if not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} is not valid UTF-8, which model files require: choose another name") from None


def check_source(name: str) -> None:
    """Check that a path to images exists. Its content, patterns, and names that are not paths, are checked later.

    Raises: FileNotFoundError if it does not exist.
    """
    is_path = name.startswith(("./", "../")) or Path(name).is_absolute()
    if is_path and not Path(name).exists() and not any(character in name for character in "*?[{"):
        raise FileNotFoundError(f"{name!r} does not exist: check the path")


def check_images(paths: list[Path]) -> None:
    """Check that image files exist.

    Raises: FileNotFoundError for the first that does not.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no image {path}: check the path")


def check_palette(source: str) -> None:
    """Check that the source of a palette, a file, folder or model, exists.

    Raises: ValueError if not.
    """
    try:
        if not Path(source).is_file():
            find_local_folder(source)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"there is no palette {source!r}: give a .npy file or a folder made by imagegpt palette fit, or the "
            "name or folder of a model (see imagegpt models)"
        ) from error


def check_parent_folder(out: Path) -> None:
    """Check that the parent folder of an output path exists.

    Raises: FileNotFoundError if not.
    """
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}: create it first, or choose another path")


def check_prefix(prefix: Path) -> None:
    """Check that a TensorFlow checkpoint with this prefix exists; its files are checked later.

    Raises: FileNotFoundError or IsADirectoryError if not.
    """
    if is_checkpoint_prefix(prefix):
        return
    if prefix.is_dir():
        raise IsADirectoryError(
            f"{prefix} is a folder: give the prefix of the checkpoint's files, the path without .index"
        )
    raise FileNotFoundError(f"there is no TensorFlow checkpoint {prefix}: {prefix.name}.index is missing")


def is_checkpoint_prefix(prefix: Path) -> bool:
    """Whether a TensorFlow checkpoint with this prefix exists; the prefix may include `.index`."""
    return Path(f"{str(prefix).removesuffix('.index')}.index").is_file()
