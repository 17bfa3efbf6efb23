"""Stand-ins for the classes that a torch file names beside its tensors; none of the real ones is ever called."""

from typing import Any

import numpy as np

# A dtype's code as numpy writes it into files: booleans, integers, floats, complex numbers; no objects, no text.
NUMERIC = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class Inert:
    """Stands in for an object whose content nobody asks for (the training script's arguments, a text scalar)."""

    def __setstate__(self, state: Any) -> None:
        """Drop what the file says of it."""


class Array:
    """Stands in for a numpy array: it keeps what the file says and calls nothing.

    numpy's own types are not safe to hand to an unpickler: an object array over given bytes is a pointer.
    """

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.fortran, self.raw = state

    def decode(self) -> np.ndarray:
        """Return the array.

        Raises:
            ValueError: the dtype is not numeric, or the bytes do not match the shape.
        """
        return np.frombuffer(self.raw, self.kind.decode()).reshape(self.shape, order="F" if self.fortran else "C")


class Kind:
    """Stands in for a numpy dtype."""

    def __init__(self, code: str, *rest: Any):
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def decode(self) -> str:
        """Return its code, with the byte order.

        Raises:
            ValueError: it is not one of `NUMERIC`.
        """
        if self.code not in NUMERIC:
            raise ValueError(f"an array of kind {str(self.code)[:20]!r}")
        return f"{'>' if getattr(self, 'order', '<') == '>' else '<'}{self.code}"


def make_array(*ignored: Any) -> Array:
    return Array()


def make_scalar(kind: Kind, *content: Any) -> Any:
    """Return a plain Python number, or an `Inert` for text, dates and objects."""
    if kind.code not in NUMERIC or len(content) != 1:
        return Inert()
    values = np.frombuffer(content[0], kind.decode())
    if len(values) != 1:
        raise ValueError(f"a scalar in it holds {len(values)} values")
    return values[0].item()


def make_path(*parts: str) -> str:
    return "/".join(str(part) for part in parts)


def safe_globals() -> list[Any]:
    """Return (stand-in, name in the file) pairs for `torch.serialization.safe_globals`."""
    found: list[Any] = [(Array, "numpy.ndarray"), (Kind, "numpy.dtype"), (Inert, "argparse.Namespace")]
    for core in ("_core", "core"):  # numpy 1 wrote `core`
        found += [(make_array, f"numpy.{core}.multiarray._reconstruct")]
        found += [(make_scalar, f"numpy.{core}.multiarray.scalar")]
    for module in ("pathlib", "pathlib._local"):  # Python 3.13 writes the latter
        found += [(make_path, f"{module}.{name}") for name in ("PosixPath", "WindowsPath")]
    return found
