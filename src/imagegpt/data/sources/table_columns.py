"""Finding the columns of a table of images: the one with the images, the one with the labels, and the class names."""

from typing import TYPE_CHECKING, Any

from imagegpt.common.text import printable, truncate
from imagegpt.files.schemas import parse_json

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, DataType, Schema

IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "jpeg", "png", "webp")  # the latter in WebDataset
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


def image_column(schema: "Schema", name: str, wanted: str | None = None) -> str:
    """Find the column of images: bytes, or structures of bytes and path, as on the hub.

    Args:
        schema: of the table.
        name: of the source, for the error.
        wanted: the column that the user asks for; None to choose one.
    Raises: ValueError if there is none, or if there are several and none has a usual name or is `wanted`.
    """
    fitting = [field.name for field in schema if _holds_images(field.type)]
    if wanted is not None:
        if wanted not in fitting:
            held = truncate(printable(", ".join(fitting)), 80) or "none"
            raise ValueError(f"{name} has no column of images {wanted!r}: its columns of images are {held}")
        return wanted
    marked = [column for column in fitting if schema.field(column).type.num_fields]  # with a path: not just any bytes
    fitting = marked or fitting
    usual = [column for column in IMAGE_COLUMNS if column in fitting]
    if len(fitting) != 1 and not usual:
        held = truncate(printable(", ".join(fitting or schema.names)), 80)
        found = f"several columns of images ({held})" if fitting else f"no column of images, only {held}"
        raise ValueError(f"{name} has {found}: images are the bytes of image files, in a column called image")
    return fitting[0] if len(fitting) == 1 else usual[0]


def label_column(schema: "Schema", name: str) -> str | None:
    """Find the column of labels; None if there is none.

    Raises: ValueError if it does not hold integers.
    """
    import pyarrow

    column = next((column for column in LABEL_COLUMNS if column in schema.names), None)
    if column is not None and not pyarrow.types.is_integer(schema.field(column).type):
        kind = truncate(str(schema.field(column).type), 80)
        raise ValueError(f"the column {column} of {name} holds {kind}: labels must be integers, from 0")
    return column


def class_names(schema: "Schema", column: str) -> list[str] | None:
    """Read the names of the classes from the description of the columns that `datasets` writes into a file."""
    try:
        described = (schema.metadata or {})[b"huggingface"]
        names = parse_json(described, "the description")["info"]["features"][column].get("names")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return list(map(str, names)) if isinstance(names, list) else None


def without_bytes(images: "ChunkedArray") -> "ChunkedArray":
    """Return which cells of a column of structures have no bytes."""
    import pyarrow

    names = [images.type.field(number).name for number in range(images.type.num_fields)]
    contents = images.flatten()[names.index("bytes")]
    return contents.is_null() if len(contents) else pyarrow.chunked_array([[]], pyarrow.bool_())


def _holds_images(kind: "DataType") -> bool:
    import pyarrow

    def is_bytes(one: Any) -> bool:
        return pyarrow.types.is_binary(one) or pyarrow.types.is_large_binary(one)

    if pyarrow.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        path = fields.get("path", pyarrow.string())
        is_text = pyarrow.types.is_string(path) or pyarrow.types.is_large_string(path) or pyarrow.types.is_null(path)
        return len(fields) == kind.num_fields and "bytes" in fields and is_bytes(fields["bytes"]) and is_text
    return is_bytes(kind)
