"""Numbers in files: a field's type says in which range of `imagegpt.common.ranges` it must be."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from imagegpt.common import ranges


@dataclass(frozen=True)
class Within:
    """Has pydantic check a field by a range of ours, NumPy's numbers included."""

    range: ranges.Range[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The check. A number may be text, and a whole one may have a fraction of 0: 1e4 is a float in YAML."""

        def check(value: Any) -> Any:
            if isinstance(value, float) and value.is_integer() and self.range.kind is int:
                value = int(value)
            try:
                return self.range.parse(value) if isinstance(value, str) else self.range.check("", value)
            except ValueError:
                raise ValueError(f"it must be {self.range}") from None  # the reader names the field

        return core_schema.no_info_plain_validator_function(check)
