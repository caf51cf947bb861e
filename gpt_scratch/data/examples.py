"""Base class of examples in columns."""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, TypeVar

Self = TypeVar("Self", bound="Examples")


class Examples:
    """Base of dataclasses whose list fields are columns of equal length; other fields apply to all rows."""

    def _columns(self) -> dict[str, list]:
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, list)}

    def __len__(self) -> int:
        return len(next(iter(self._columns().values())))

    def take(self: Self, indices: Iterable[int]) -> Self:
        """The examples at `indices`, in that order."""
        indices = [int(i) for i in indices]
        columns = {name: [column[i] for i in indices] for name, column in self._columns().items()}
        return replace(self, **columns)  # type: ignore[type-var]
