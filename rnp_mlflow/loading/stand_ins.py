"""What a torch file may name, and what stands for it here: of torch and numpy, nothing is called but a view."""

from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnp_mlflow.loading.pickles import Maker, plain_key
from rnp_mlflow.loading.tensors import strided

# dtype codes as numpy writes them to files: booleans, integers, floats, complex numbers; no objects, no text.
NUMERIC = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
# Names of torch's storages, in the file without a dtype.
STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip

MENTIONED = ("numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")  # not called


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


STATEFUL = (Inert, SafeNdarray, SafeDtype)


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
    return "/".join(part[:255] for part in parts[:64])


def build_bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Return the bytes that a pickle of this protocol holds as text; other encodings may take long."""
    if encoding != "latin1":
        raise ValueError("bytes in another encoding")
    return text.encode(encoding)


def build_tuple(items: Any = ()) -> tuple[Any, ...]:
    """Return a sequence of the file as a tuple; a tensor is none, as each of its elements would be one more."""
    if not isinstance(items, (list, tuple)):
        raise TypeError("a sequence that is none")
    return tuple(items)


def build_mapping(entries: Any = ()) -> "OrderedDict[Any, Any]":
    """Return a mapping; Python 2 gave it as pairs."""
    pairs = entries.items() if isinstance(entries, dict) else build_tuple(entries)
    return OrderedDict((plain_key(key), value) for key, value in pairs)


def build_tensor(storage: Tensor, offset: Any, sizes: Any, strides: Any, *ignored: Any) -> Tensor:
    return strided(storage, offset, sizes, strides)


def build_typed_tensor(storage: Tensor, *place: Any) -> Tensor:
    """Return a tensor of a type that has no storage of its own."""
    offset, sizes, strides, _, _, dtype = place[:6]
    return strided(storage.view(dtype), offset, sizes, strides)


def build_parameter(tensor: Tensor, *ignored: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError("a parameter that is not a tensor")
    return tensor


def build_with_attributes(maker: Maker, kind: Any, arguments: tuple[Any, ...], state: Any) -> Tensor:
    """Return a tensor without the attributes that it had."""
    if maker.build not in (build_tensor, build_typed_tensor):
        raise TypeError("a tensor that is made in another way")
    found: Tensor = maker.build(*arguments)
    return found


def nothing(*ignored: Any) -> Inert:
    return Inert()


@lru_cache
def known_names() -> dict[str, Any]:
    """Return name in a file → what a `Machine` takes it for."""
    makers: dict[str, Any] = {
        "collections.OrderedDict": build_mapping, "collections.Counter": build_mapping,
        "builtins.set": build_tuple, "builtins.bytes": build_bytes, "_codecs.encode": build_bytes,
        "torch.Size": build_tuple, "torch.device": nothing, "argparse.Namespace": nothing,
        "numpy.dtype": SafeDtype,
        "torch._utils._rebuild_tensor": build_tensor, "torch._utils._rebuild_tensor_v2": build_tensor,
        "torch._utils._rebuild_tensor_v3": build_typed_tensor, "torch._utils._rebuild_parameter": build_parameter,
        "torch._utils._rebuild_parameter_with_state": build_parameter,
        "torch._tensor._rebuild_from_type_v2": build_with_attributes,
    }  # fmt: skip
    for core in ("_core", "core"):  # numpy 1 wrote `core`
        makers |= {
            f"numpy.{core}.multiarray._reconstruct": build_array,
            f"numpy.{core}.multiarray.scalar": build_scalar,
        }
    for module in ("pathlib", "pathlib._local"):  # Python 3.13 writes the latter
        makers |= {f"{module}.{name}": build_path for name in ("PosixPath", "WindowsPath")}
    found = {name: Maker(build) for name, build in makers.items()}
    for place in ("torch", "torch.cuda"):
        found |= {f"{place}.{name}Storage": dtype for name, dtype in STORAGES.items()}  # type: ignore[misc]
    dtypes = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    bytes_alone = {f"torch.{place}UntypedStorage": torch.uint8 for place in ("", "storage.")}
    return found | dtypes | bytes_alone | dict.fromkeys(MENTIONED)
