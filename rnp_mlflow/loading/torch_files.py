"""Torch and safetensors files, read without executing anything in them.

Torch itself does not see them: its archive is a zip of raw bytes and of one pickle, its older form a row of pickles
with the bytes at the end.
"""

import re
import struct
import sys
import zipfile
import zlib
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading import foreign
from rnp_mlflow.loading.archives import check_zip, directory
from rnp_mlflow.loading.pickles import LONGEST, Machine, Refused
from rnp_mlflow.loading.regular import check_regular
from rnp_mlflow.loading.stand_ins import STATEFUL, known_names
from rnp_mlflow.loading.tensors import empty, raw

SAVE_HINT = "save only its weights, with torch.save(model.state_dict(), FILE) or safetensors, and give that file"
VERSION = 1001  # of the older form: torch/serialization.py, PROTOCOL_VERSION
HEADER = 8 << 20  # bytes of a safetensors file's table, at most


def read_torch(file: Path) -> Any:
    """Read a file of `torch.save`: containers, plain values, tensors on the CPU, and numpy's numbers.

    Raises:
        ModelError: the file is missing, broken, of another kind, or needs anything else to be called or imported.
    """
    check_regular(file, ModelError)
    foreign.refuse(file, ModelError, taken=("torch", "legacy"))
    with file.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\3\4"  # torch's own rule
    if is_zip:
        check_zip(file, stored=True, error=ModelError)
    elif foreign.kind_of(file) != "legacy":
        raise ModelError(
            f"{file} is not a file of weights: its first bytes are not those of a torch, safetensors or pt2 file; "
            f"fetch it again or, where it was made, {SAVE_HINT}"
        )
    try:
        with file.open("rb") as stream:
            return Archive(file, stream).load() if is_zip else OlderFile(file, stream).load()
    except Refused as refused:
        raise ModelError(f"{file} {refused}; {SAVE_HINT}") from None
    except Exception:  # a broken or hostile file can raise anything
        raise ModelError(
            f"{file} cannot be read as weights: it is damaged, or holds more than tensors and plain values; fetch it "
            f"again or, where it was made, {SAVE_HINT}"
        ) from None


class Archive:
    """A zip of `FOLDER/data.pkl` and `FOLDER/data/KEY`, the bytes of each storage."""

    def __init__(self, file: Path, stream: BufferedReader):
        self.stream, self.size, self.found = stream, file.stat().st_size, dict[str, Tensor]()
        entries, _ = directory(file)
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) != len(entries):
            raise Refused("is refused: two entries of the archive have one name")
        pickles = [name for name in self.entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise Refused(f"is refused: it has {len(pickles)} entries data.pkl")
        self.folder = pickles[0].removesuffix("data.pkl")

    def load(self) -> Any:
        """Read the pickle, and the storages that it needs."""
        self.swapped = self.content("byteorder", 16) not in (b"", sys.byteorder.encode())
        return Machine(known_names(), self.stored, STATEFUL).load(BytesIO(self.content("data.pkl", LONGEST)))

    def content(self, name: str, most: int) -> bytes:
        """Return the content of an entry, nothing if there is none."""
        entry = self.entries.get(self.folder + name)
        if entry is None:
            return b""
        if entry.file_size > most:
            raise Refused(f"is refused: what it holds beside its weights is larger than {most:,} bytes")
        buffer = bytearray(entry.file_size)
        self.fill(entry, memoryview(buffer))
        return bytes(buffer)

    def stored(self, place: Any) -> Tensor:
        """Return the elements (N,) of the storage that a pickle describes."""
        kind, dtype, key, _, count = place
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError("what is stored is not a storage")
        if key not in self.found:
            entry = self.entries[f"{self.folder}data/{key}"]
            values = empty(dtype, count, self.size)
            self.fill(entry, raw(values))
            if self.swapped:
                values.untyped_storage().byteswap(dtype)
            self.found[key] = values
        values = self.found[key]
        if (values.dtype, len(values)) != (dtype, count):
            raise ValueError("a storage is described in two ways")
        return values

    def fill(self, entry: zipfile.ZipInfo, buffer: memoryview) -> None:
        """Read an entry, which is not compressed, into memory of its size.

        Raises:
            ValueError: it is of another size, or not what was written (torch writes 0 if it made no checksum).
        """
        self.stream.seek(entry.header_offset)
        head = self.stream.read(30)
        name, extra = struct.unpack("<HH", head[26:30])
        self.stream.seek(name + extra, 1)
        if head[:4] != b"PK\3\4" or entry.file_size != len(buffer) or self.stream.readinto(buffer) != len(buffer):
            raise ValueError("an entry of the archive is cut off, or of another size")
        if entry.CRC and zlib.crc32(buffer) != entry.CRC:
            raise ValueError("an entry of the archive is not what was written")


class OlderFile:
    """What torch wrote before 1.6: pickles, and behind them each storage with the number of its elements before it."""

    def __init__(self, file: Path, stream: BufferedReader):
        self.stream, self.left = stream, file.stat().st_size
        self.found, self.views = dict[str, Tensor](), dict[str, Tensor]()

    def load(self) -> Any:
        """Read the pickle, then the bytes of every storage that it needs."""
        machine = Machine(known_names(), self.stored, STATEFUL)
        _, version, _ = (machine.load(self.stream) for _ in range(3))
        if version != VERSION:
            raise ValueError("another version of the form")
        content, keys = machine.load(self.stream), machine.load(self.stream)
        if not all(type(key) is str for key in keys) or sorted(keys) != sorted(self.found):
            raise Refused("is refused: the bytes of some of its weights are not in it")
        for key in keys:
            values = self.found[key]
            (count,) = struct.unpack("<q", self.stream.read(8))
            if count != len(values) or self.stream.readinto(raw(values)) != values.nbytes:
                raise ValueError("a storage is cut off, or of another size")
        return content

    def stored(self, place: Any) -> Tensor:
        """Return the elements (N,) of the storage that a pickle describes, or of a part of it; they are read later."""
        kind, dtype, key, _, count, part = place
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError("what is stored is not a storage")
        if key not in self.found:
            self.found[key] = empty(dtype, count, self.left)
            self.left -= self.found[key].nbytes
        values = self.found[key]
        if (values.dtype, len(values)) != (dtype, count):
            raise ValueError("a storage is described in two ways")
        if part is None:
            return values
        _, offset, length = part
        return values[offset : offset + length]


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU.

    Raises:
        ModelError: the file is missing or broken.
    """
    check_regular(file, ModelError)
    foreign.refuse(file, ModelError, taken=("safetensors",))
    with file.open("rb") as stream:
        if int.from_bytes(stream.read(8), "little") > HEADER:
            raise ModelError(f"{file} is refused: its table of tensors is larger than {HEADER:,} bytes")
    try:
        found: dict[str, Tensor] = load_file(file)
        return found
    except Exception as error:  # a broken or hostile file can raise anything
        raise ModelError(f"{file} is not a safetensors file: {error}") from None
