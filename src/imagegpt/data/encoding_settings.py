"""The settings that determine the content of an encoding."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange

KIND = "images encoded by imagegpt"

ShardFormat = Literal["arrow", "parquet"]


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """Everything that determines the content of the shards.

    Args:
        source: its absolute path, or its name.
        split: of the source; None if it has none.
        source_fingerprint: a hash of the content of its files.
        num_source: images in it, broken or not.
        classes: the names of the labels; None if there are none.
        palette: its fingerprint.
        num_colors: of the palette.
        processor: its other settings: size, resize_mode, resample, background.
        shard_size: images of the source per shard.
        file_format: of the shards.
        version: of this package.
    """

    source: str
    split: str | None
    source_fingerprint: str
    num_source: Annotated[int, InRange(ranges.DATASET_SIZE)]
    classes: list[str] | None
    palette: str
    num_colors: Annotated[int, InRange(ranges.COLORS)]
    processor: dict[str, Any]
    shard_size: Annotated[int, InRange(ranges.SHARD_IMAGES)]
    file_format: ShardFormat
    version: str

    def __post_init__(self) -> None:
        size = self.processor.get("size")
        for edge in ("height", "width"):
            ranges.IMAGE_SIDE.check(f"processor.size.{edge}", size.get(edge) if isinstance(size, dict) else None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.processor["size"]["height"], self.processor["size"]["width"]

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-self.num_source // self.shard_size)

    def items(self, shard: int) -> range:
        """The images of the source that a shard is made from."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_source))

    def file(self, shard: int) -> str:
        """The file name of a shard, as `datasets` names them."""
        return f"data-{shard:05d}-of-{self.num_shards:05d}.{self.file_format}"

    def differences(self, now: "EncodingSettings") -> list[str]:
        """Describe the settings in which `now` differs from these."""
        old, new = ({**vars(one), **one.processor} for one in (self, now))
        words = {
            "source_fingerprint": "content of the source", "num_source": "number of images", "file_format": "format"
        }  # fmt: skip
        return [
            f"{words.get(name, name)} ({_shown(old[name])}, not {_shown(new.get(name))})"
            for name in old
            if name != "processor" and old[name] != new.get(name)
        ]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
