"""The folder of an encoding as the job sees it: joining it, finishing it, and what may be in it."""

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagegpt.data import encoding_folder as encoding
from imagegpt.data.encoding_folder import INFO_FILE, MANIFEST, SPLITS_FILE, STATE_FILE
from imagegpt.data.encoding_settings import EncodingSettings
from imagegpt.data.encoding_shards import features
from imagegpt.data.hashing import source_fingerprint, source_stamp
from imagegpt.data.sources.base import ImageSource
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import folder_lock
from imagegpt.files.schemas import read_json, validate
from imagegpt.images.palette import PROCESSOR_FILE
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.jobs.encode_job import EncodeJob
from imagegpt.jobs.manifest import check_content, check_place
from imagegpt.jobs.markers import SOURCE_FILE, STATE_FOLDER, joined, remove_temporaries

_SHARD = re.compile(r"data-\d{5,}-of-\d{5,}\.(arrow|parquet)")

ChooseSettings = Callable[[ImageSource, str], EncodingSettings]


def check_folder(folder: Path, names: Sequence[str] = ()) -> None:
    """Check that an encoding may use a folder: it does not exist, is empty, or contains an encoding and nothing else.

    Args:
        folder: of one split, or of several.
        names: of the splits; none if the folder contains the shards themselves.
    Raises: ValueError or OSError, in one sentence, if not. Nothing is changed.
    """
    check_place(folder, "encoded images need a folder")
    own = {SPLITS_FILE, PROCESSOR_FILE, *names} if names else {MANIFEST, INFO_FILE, STATE_FILE, PROCESSOR_FILE}
    paths = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    check_content(
        folder, paths, lambda path: path in own or (not names and bool(_SHARD.fullmatch(path))), "this encoding"
    )


@dataclass(frozen=True, kw_only=True)
class SplitFolder:
    """A source, or one of its splits, and the folder that its encoding goes into.

    Attributes:
        source: of the images.
        folder: of the shards; its parent must exist.
        processor: encodes the images.
        max_broken: the fraction of images that may be broken.
    """

    source: ImageSource
    folder: Path
    processor: ImageGPTImageProcessor
    max_broken: float

    @contextlib.contextmanager
    def joined(self, choose: ChooseSettings) -> Iterator[EncodeJob]:
        """Take part in the encoding, and finish it when the `with` block ends without an error.

        Args:
            choose: gives the settings for the source and its fingerprint.
        Raises: ValueError if the folder contains another encoding, or the source's files change meanwhile.
        """
        self.folder.mkdir(exist_ok=True)
        stamp = source_stamp(self.source)  # before the content is read, so that a change in between is noticed

        def agree(_: Callable[[], None]) -> EncodingSettings:
            return self._agree(stamp, choose)

        with joined(self.folder, EncodeJob.doing, agree) as settings:
            job = EncodeJob(settings=settings, **vars(self))
            yield job
            if source_stamp(self.source) != stamp:
                raise ValueError(f"the files of {self.source.name} have changed meanwhile: give the same command again")
            self._finish(job)

    def _agree(self, stamp: str, choose: ChooseSettings) -> EncodingSettings:
        remove_temporaries(self.folder, lambda name: not _SHARD.fullmatch(name))
        existing = encoding.read_manifest(self.folder)
        fingerprint = _known_fingerprint(self.folder, stamp) or source_fingerprint(self.source)
        settings = choose(self.source, fingerprint)
        differences = existing.settings.differences(settings) if existing else []
        if differences:
            raise ValueError(
                f"the images in {self.folder} were encoded with another {' and another '.join(differences)}: "
                "give the same, or choose another folder"
            )
        if existing is None:
            encoding.write_manifest(self.folder, settings)
        _remember_fingerprint(self.folder, stamp, fingerprint)
        return settings

    def _finish(self, job: EncodeJob) -> None:
        """Write everything beside the shards, all of which are finished."""
        with folder_lock(self.folder, job.doing, wait_s=60):
            self.processor.save_pretrained(self.folder)
            if job.settings.file_format == "arrow":
                _write_descriptions(self.folder, job.settings)
            encoding.write_manifest(self.folder, job.settings, [job.shards[one] for one in sorted(job.shards)])
            (self.folder / STATE_FOLDER / SOURCE_FILE).unlink(missing_ok=True)


def describe_splits(folder: Path, names: Sequence[str], processor: ImageGPTImageProcessor) -> None:
    """Write what belongs beside the folders of the splits."""
    with folder_lock(folder, EncodeJob.doing, wait_s=60):
        remove_temporaries(folder, lambda _: True)
        processor.save_pretrained(folder)
        content = json.dumps({"splits": list(names)}) + "\n"
        atomic_write(folder / SPLITS_FILE, content.encode(), "the list of splits")


@contextlib.contextmanager
def listed(jobs: Sequence[EncodeJob]) -> Iterator[None]:
    """Let other processes read the lists of images from files, within a `with` block, instead of listing them again."""
    paths = {job.folder / STATE_FOLDER / f".images.{secrets.token_hex(4)}.tmp": job for job in jobs}
    try:
        for path, job in paths.items():
            job.source.save_listing(path)
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _write_descriptions(folder: Path, settings: EncodingSettings) -> None:
    """Write what `datasets.load_from_disk` reads."""
    info = {"description": f"Images as ids of the palette {settings.palette}", "features": features(settings)}
    state = {
        "_data_files": [{"filename": settings.file(number)} for number in range(settings.num_shards)],
        # The library's own fingerprints are random, which would make every encoding a different data set.
        "_fingerprint": hashlib.sha256(repr(settings).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": settings.split,
    }
    for name, fields in {INFO_FILE: info, STATE_FILE: state}.items():
        atomic_write(folder / name, (json.dumps(fields, indent=2) + "\n").encode(), "the description of the data set")


def _known_fingerprint(folder: Path, stamp: str) -> str | None:
    """The fingerprint that another process has computed of the same files, which takes it hours for millions."""
    path = folder / STATE_FOLDER / SOURCE_FILE
    try:
        known = validate(read_json(path), dict[str, str], str(path))
    except (OSError, ValueError):
        return None
    return known.get("fingerprint") if known.get("stamp") == stamp else None


def _remember_fingerprint(folder: Path, stamp: str, fingerprint: str) -> None:
    content = json.dumps({"stamp": stamp, "fingerprint": fingerprint})
    atomic_write(folder / STATE_FOLDER / SOURCE_FILE, content.encode(), "the fingerprint of the source", durable=False)
