"""JSON of a store, which others may write to: read with a bound on its size, and held to a type."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rnp_mlflow.errors import LineageError

LARGEST = 64 << 20  # bytes; a poison plan lists the index of every poisoned image
T = TypeVar("T")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LineageError: it holds something else, or is too large.
    """
    return as_type(dict[str, Any], _content(file), file)


def as_type(kind: type[T], content: object, file: Path) -> T:
    """Hold the content of a file (JSON as bytes, or what was read of it) to a type.

    Raises:
        LineageError: it does not fit.
    """
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_json(content) if isinstance(content, bytes) else adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"])) or "it"
        raise LineageError(f"{file.name} in the store is broken ({location}: {first['msg'][:160]}); make that run again"
                           ) from None  # fmt: skip


def _content(file: Path) -> bytes:
    with file.open("rb") as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise LineageError(f"{file.name} in the store is larger than {LARGEST:,} bytes; make that run again")
    return content
