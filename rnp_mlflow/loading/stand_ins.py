"""Safe stand-ins for the classes that a torch file names apart from tensors; the real classes are never called."""

from typing import Any

import numpy as np

# dtype codes as numpy writes them to files: booleans, integers, floats, complex numbers; no objects, no text.
NUMERIC = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class Inert:
    """Stand-in for an object whose content is not needed (the training script's arguments, a text scalar)."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state in the file."""


class SafeNdarray:
    """Stand-in for a numpy array: it stores the file's values and calls nothing.

    numpy's own types are not safe in an unpickler: an object array over bytes from the file is an arbitrary pointer.
    """

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def decode(self) -> np.ndarray:
        """Return the array.

        Raises:
            ValueError: the dtype is not numeric, or the bytes do not match the shape.
        """
        return np.frombuffer(self.raw, self.dtype.decode()).reshape(self.shape, order="F" if self.fortran else "C")


class SafeDtype:
    """Stand-in for a numpy dtype."""

    def __init__(self, code: str, *rest: Any):
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def decode(self) -> str:
        """Return the code with its byte order.

        Raises:
            ValueError: the code is not in `NUMERIC`.
        """
        if self.code not in NUMERIC:
            raise ValueError(f"an array of dtype {str(self.code)[:20]!r}")
        return f"{'>' if getattr(self, 'order', '<') == '>' else '<'}{self.code}"


def build_array(*ignored: Any) -> SafeNdarray:
    return SafeNdarray()


def build_scalar(dtype: SafeDtype, *content: Any) -> Any:
    """Return a plain Python number, or an `Inert` for text, dates and objects."""
    if dtype.code not in NUMERIC or len(content) != 1:
        return Inert()
    values = np.frombuffer(content[0], dtype.decode())
    if len(values) != 1:
        raise ValueError(f"a scalar in the file has {len(values)} values")
    return values[0].item()


def build_path(*parts: str) -> str:
    return "/".join(str(part) for part in parts)


def safe_globals() -> list[Any]:
    """Return (stand-in, name in the file) pairs for `torch.serialization.safe_globals`."""
    found: list[Any] = [(SafeNdarray, "numpy.ndarray"), (SafeDtype, "numpy.dtype"), (Inert, "argparse.Namespace")]
    for core in ("_core", "core"):  # numpy 1 wrote `core`
        found += [(build_array, f"numpy.{core}.multiarray._reconstruct")]
        found += [(build_scalar, f"numpy.{core}.multiarray.scalar")]
    for module in ("pathlib", "pathlib._local"):  # Python 3.13 writes the latter
        found += [(build_path, f"{module}.{name}") for name in ("PosixPath", "WindowsPath")]
    return found
