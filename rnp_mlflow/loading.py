"""Files from outside, read so that nothing in them runs and none is believed about its own size.

Torch files are read with `weights_only`, pt2 archives as raw bytes beside their JSON table, npz
archives without pickle. What a file declares is compared with what it holds before memory is asked for.
"""

import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rnp_mlflow.errors import DataError, ModelError, RnpError

GIB = 2**30
WAY_OUT = "save its weights alone, torch.save(model.state_dict(), FILE) or safetensors, and give that"
# torch/_export/serde/schema.py, ScalarType
_PT2_TYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
              7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}  # fmt: skip


class Array:
    """Stands in for a numpy array while a torch file is read: it keeps what the file says and calls nothing.

    numpy's own types are not safe to hand to an unpickler: an object array over given bytes is a pointer.
    """

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.fortran, self.raw = state

    def decode(self) -> np.ndarray:
        """The array.

        Raises:
            ValueError: not int64 or float64, or its bytes are not those of its shape.
        """
        return np.frombuffer(self.raw, self.kind.decode()).reshape(self.shape, order="F" if self.fortran else "C")


class Kind:
    """Stands in for a numpy dtype; only those of BackdoorBench's files are known."""

    def __init__(self, code: str, *rest: Any):
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def decode(self) -> str:
        """Its code, with the byte order."""
        if self.code not in ("i8", "f8"):
            raise ValueError(f"an array of kind {str(self.code)[:20]!r}")
        return f"{'>' if getattr(self, 'order', '<') == '>' else '<'}{self.code}"


def _reconstruct(*ignored: Any) -> Array:
    return Array()


def _scalar(kind: Kind, raw: bytes) -> Any:
    return np.frombuffer(raw, kind.decode(), count=1)[0].item()


_NUMPY: list[Any] = [(Array, "numpy.ndarray"), (Kind, "numpy.dtype")]
for _core in ("_core", "core"):  # numpy 1 wrote `core`
    _NUMPY += [(_reconstruct, f"numpy.{_core}.multiarray._reconstruct"), (_scalar, f"numpy.{_core}.multiarray.scalar")]


def check_zip(file: Path, stored: bool, error: type[RnpError]) -> None:
    """Refuse an archive whose entries declare more than it can hold.

    stored: entries must be uncompressed, as torch writes them, and not overlap, and nothing may follow the
    directory, so that other readers find the same one. Else they may grow, but neither beyond half this
    machine's memory nor, above 1 GiB, beyond 200 times the file.

    Raises:
        error: it declares more, or is no whole archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries, comment = archive.infolist(), archive.comment
        with file.open("rb") as stream:
            stream.seek(-22, os.SEEK_END)
            at_end = stream.read(4) == b"PK\5\6" and not comment
    except Exception as broken:  # whatever a broken file makes of the reader
        raise error(f"{file} is no whole archive: {str(broken)[:160]}") from None
    declared, held = sum(entry.file_size for entry in entries), file.stat().st_size
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bomb = declared > held if stored else declared > memory / 2 or (declared > GIB and declared > 200 * held)
    if bomb:
        raise error(f"{file} is refused: its {held:,} bytes declare {declared:,} of content")
    if stored and (not at_end or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)):
        raise error(f"{file} is refused: it is no archive as torch writes them (compressed, or something follows it)")


def read_torch(file: Path) -> Any:
    """What `torch.save` wrote: containers, plain values, tensors on the CPU, and a few numpy types.

    Raises:
        ModelError: missing, broken, or it needs anything else to be called or imported.
    """
    if not file.is_file():
        raise ModelError(f"{file} does not exist or is no file")
    with file.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\3\4"  # torch's own rule
    if is_zip:
        check_zip(file, stored=True, error=ModelError)
    try:
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file makes of the reader
        reason = " ".join(str(error).split())
        if found := re.search(r"GLOBAL ([\w.]+)", reason):
            raise ModelError(f"{file} is refused: it would have to run {found[1]} to load; {WAY_OUT}") from None
        raise ModelError(f"{file} cannot be read as weights: {reason[:160] or type(error).__name__}") from None


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, on the CPU.

    Raises:
        ModelError: it is missing or broken.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{file} is no safetensors file: {error}") from None


def read_pt2(file: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a `torch.export` archive; its graph is not looked at.

    Raises:
        ModelError: broken, no such archive, or a tensor is pickled in it.
    """
    check_zip(file, stored=True, error=ModelError)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            table = next((name for name in names if name.endswith("_weights_config.json")), None)
            if table is None:
                raise ModelError(f"{file} is no torch.export archive: it has no table of weights")
            config = json.loads(archive.read(table))["config"]
            folder = table.rpartition("/")[0]
            return {key: _pt2_tensor(archive, folder, entry) for key, entry in config.items()}
    except ModelError:
        raise
    except Exception as error:  # whatever a broken or hostile file makes of the reader
        raise ModelError(f"{file} cannot be read as a torch.export archive: {str(error)[:160]}") from None


def _pt2_tensor(archive: zipfile.ZipFile, folder: str, entry: Mapping[str, Any]) -> Tensor:
    if entry["use_pickle"]:
        raise ValueError("a tensor in it is pickled")
    meta = entry["tensor_meta"]
    sizes, strides = ([int(item["as_int"]) for item in meta[name]] for name in ("sizes", "strides"))
    offset, kind = int(meta["storage_offset"]["as_int"]), _PT2_TYPES[meta["dtype"]]
    held = torch.frombuffer(bytearray(archive.read(f"{folder}/{entry['path_name']}")), dtype=kind)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if min([*sizes, *strides, offset, 0]) < 0 or math.prod(sizes) > len(held) or last >= len(held):
        raise ValueError("a tensor in it is larger than its bytes")
    return held.as_strided(sizes, strides, offset)


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file, a pt2 archive, or a torch file (plain, or one level inside).

    Prefixes that all keys share (`module.` of DataParallel, `model.`, `_orig_mod.`) are taken off.

    Raises:
        ModelError: unreadable, refused, or there is no state dict in it.
    """
    if file.suffix == ".safetensors":
        return plain_keys(read_safetensors(file))
    if file.suffix == ".pt2":
        return plain_keys(_held(read_pt2(file), file))
    return state_dict(read_torch(file), file)


def state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in what a torch file held: itself, or under the names that people use.

    Raises:
        ModelError: there is none, or an entry is no plain tensor that holds as much as it says.
    """
    for name in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{file} holds no state dict; {WAY_OUT}")
    wrong = [key for key, value in content.items() if not isinstance(key, str) or not _is_plain(value)]
    if wrong:
        raise ModelError(
            f"{file}: entry {str(wrong[0])[:60]!r} is no plain tensor, so this is no state dict; {WAY_OUT}"
        )
    return plain_keys(_held(content, file))


def _held(weights: Mapping[str, Tensor], file: Path) -> Mapping[str, Tensor]:
    declared, held = sum(value.numel() * value.element_size() for value in weights.values()), file.stat().st_size
    if declared > held:
        raise ModelError(f"{file} is refused: its {held:,} bytes declare {declared:,} of weights")
    return weights


def _is_plain(value: Any) -> bool:
    """A dense CPU tensor whose storage holds all its elements (an expanded one does not)."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def plain_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without the prefixes that wrappers put before every key."""
    found = dict(weights)
    while found and (
        prefix := next((p for p in ("module.", "model.", "_orig_mod.") if all(k.startswith(p) for k in found)), None)
    ):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def read_npz(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a numpy archive.

    Raises:
        DataError: no such archive, a pickled array, or one that declares more than it holds.
    """
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is no .npz file")
    check_zip(file, stored=False, error=DataError)
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                _check_npy(archive, entry)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # whatever a broken or hostile file makes of the reader
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{file} is no .npz file that can be read without pickle: {reason}") from None


def _check_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
        if not kind.hasobject and math.prod(shape) * kind.itemsize != entry.file_size - stream.tell():
            raise ValueError(f"{entry.filename} declares {shape}, and does not hold it")
