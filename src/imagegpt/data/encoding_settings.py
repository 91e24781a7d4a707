"""What decides the contents of an encoding."""

from dataclasses import dataclass
from typing import Annotated, Any

from imagegpt.common import ranges
from imagegpt.common.number_fields import Within

KIND = "images encoded by imagegpt"


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """All that decides what the shards contain.

    Args:
        source: as a path from the root, or a name.
        split: of the source, None if it has none.
        source_fingerprint: of the source, by the content of its files.
        num_source: pictures in it, broken or not.
        classes: the names of the labels, None if there are none.
        palette: its fingerprint.
        num_colors: of the palette.
        processor: its other settings: size, resize_mode, resample, background.
        shard_size: pictures of the source a shard.
        version: of this package.
    """

    source: str
    split: str | None
    source_fingerprint: str
    num_source: Annotated[int, Within(ranges.SOME_IMAGES)]
    classes: list[str] | None
    palette: str
    num_colors: Annotated[int, Within(ranges.COLORS)]
    processor: dict[str, Any]
    shard_size: Annotated[int, Within(ranges.SHARD_IMAGES)]
    version: str

    def __post_init__(self) -> None:
        size = self.processor.get("size")
        for edge in ("height", "width"):
            ranges.SIDE.check(f"processor.size.{edge}", size.get(edge) if isinstance(size, dict) else None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.processor["size"]["height"], self.processor["size"]["width"]

    @property
    def num_shards(self) -> int:
        """How many files there are."""
        return -(-self.num_source // self.shard_size)

    def stretch(self, shard: int) -> range:
        """The pictures of the source that a shard is made from."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_source))

    def file(self, shard: int) -> str:
        """The name of a shard, as `datasets` calls them."""
        return f"data-{shard:05d}-of-{self.num_shards:05d}.arrow"

    def differences(self, now: "EncodingSettings") -> list[str]:
        """In what other settings differ from these, in words."""
        old, new = ({**vars(one), **one.processor} for one in (self, now))
        words = {"source_fingerprint": "content of the source", "num_source": "number of images"}
        return [
            f"{words.get(name, name)} ({_shown(old[name])}, not {_shown(new.get(name))})"
            for name in old
            if name != "processor" and old[name] != new.get(name)
        ]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
