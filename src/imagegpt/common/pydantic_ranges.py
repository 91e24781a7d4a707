"""Fields with a number range in pydantic schemas: `Annotated[int, InRange(ranges.SEED)]`."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from imagegpt.common import ranges


@dataclass(frozen=True)
class InRange:
    """Make pydantic check a field against one of our ranges; NumPy numbers are accepted."""

    range: ranges.Range[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the validator. It also accepts numbers given as text, and integral floats: YAML reads 1e4 as one."""

        def check(value: Any) -> Any:
            if isinstance(value, float) and value.is_integer() and self.range.kind is int:
                value = int(value)
            try:
                return self.range.parse(value) if isinstance(value, str) else self.range.check("", value)
            except ValueError:
                raise ValueError(f"it must be {self.range}") from None  # the caller adds the name of the field

        return core_schema.no_info_plain_validator_function(check)
