"""Files other than torch's that were made to harm whoever reads them: archives, tables, arrays, pictures, results."""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from hostile_torch import GOOD, archive, text, zip_of
from PIL import Image

Cases = dict[str, tuple[Callable[[Path], object], str]]


def pt2(file: Path, table: str, blob: bytes = bytes(8)) -> Path:
    folder = "m/data/weights"
    return zip_of(file, {f"{folder}/model_weights_config.json": table.encode(), f"{folder}/weight_0": blob})


def entry(
    pickled: object = False, sizes: object = 2, stride: object = 1, offset: object = 0, dtype: object = 7
) -> object:
    meta = {
        "dtype": dtype,
        "sizes": [{"as_int": sizes}],
        "strides": [{"as_int": stride}],
        "storage_offset": {"as_int": offset},
    }
    return {"path_name": "weight_0", "is_param": True, "use_pickle": pickled, "tensor_meta": meta}


def config(count: int = 1, **how: object) -> str:
    return json.dumps({"config": {str(k): entry(**how) for k in range(count)}})


PT2: Cases = {
    "512 entries on one blob of 5 MB": (
        lambda f: pt2(f, config(512, sizes=1_250_000), bytes(5_000_000)),
        "declare 2,560,000,000 bytes",
    ),
    "a pickled tensor": (lambda f: pt2(f, config(pickled=True)), "pickled"),
    "a table of 20 MB": (lambda f: pt2(f, '{"config": {}, "a": "' + "a" * (20 << 20) + '"}'), "larger than"),
    "lists 100,000 deep": (lambda f: pt2(f, '{"config": ' + "[" * 100_000 + "]" * 100_000 + "}"), "cannot be read"),
    "a number of 10,000 digits": (lambda f: pt2(f, '{"config": ' + "9" * 10_000 + "}"), "cannot be read"),
    "negative sizes": (lambda f: pt2(f, config(sizes=-2)), "cannot be read"),
    "sizes as text": (lambda f: pt2(f, config(sizes="2")), "cannot be read"),
    "sizes that overflow": (lambda f: pt2(f, config(sizes=2**62, stride=2**62)), "cannot be read"),
    "a dtype as text": (lambda f: pt2(f, config(dtype="\x1b[2J")), "cannot be read"),
    "a tensor beyond its bytes": (lambda f: pt2(f, config(offset=7)), "cannot be read"),
    "no such blob": (lambda f: pt2(f, config().replace("weight_0", "../../../etc/passwd")), "cannot be read"),
}


def safetensors(file: Path, header: bytes, blob: bytes = b"") -> Path:
    file.write_bytes(struct.pack("<Q", len(header)) + header + blob)
    return file


SAFETENSORS: Cases = {
    "a table of 50 MB": (lambda f: safetensors(f, b'{"a":"' + b"a" * (50 << 20) + b'"}'), "larger than"),
    "40,000 empty tensors": (
        lambda f: safetensors(
            f,
            json.dumps(
                {str(k): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(40_000)}
            ).encode(),
        ),
        "40,000 tensors",
    ),
    "lists 100,000 deep": (
        lambda f: safetensors(f, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "not a safetensors file",
    ),
    "a size of 2^62": (
        lambda f: safetensors(
            f, b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}', bytes(8)
        ),
        "not a safetensors file",
    ),
    "bytes that are not in it": (
        lambda f: safetensors(f, b'{"w":{"dtype":"F32","shape":[250000],"data_offsets":[0,1000000]}}', bytes(8)),
        "not a safetensors file",
    ),
    "tensors over each other": (
        lambda f: safetensors(
            f,
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            bytes(8),
        ),
        "not a safetensors file",
    ),
    "a dtype with ESC": (
        lambda f: safetensors(f, b'{"w":{"dtype":"\\u001b[2J","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "not a safetensors file",
    ),
    "a name of 100 kB": (
        lambda f: safetensors(
            f, b'{"' + b"a" * 100_000 + b'":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)
        ),
        "names of up to 100,000 characters",
    ),
}


def npy(descr: str, shape: str, content: bytes, version: bytes = b"\1\0") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(header)) + header + content


def npz(file: Path, x: bytes, y: bytes | None = None) -> Path:
    return zip_of(file, {"x.npy": x, "y.npy": y or npy("'<i8'", "(1,)", bytes(8))})


def filled(file: Path, count: int) -> Path:
    """An array of that many zeros, packed a thousandfold."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as found, found.open("x.npy", "w", force_zip64=True) as out:
        out.write(npy("'|u1'", f"({count},)", b""))
        for _ in range(count // 2**24):
            out.write(bytes(2**24))
    return file


PIXEL = npy("'|u1'", "(1, 1, 1, 3)", bytes(3))


NPZ: Cases = {
    "a label of 10^12": (
        lambda f: npz(f, PIXEL, npy("'<i8'", "(1,)", struct.pack("<q", 10**12))),
        "one is 1000000000000",
    ),
    "zeros packed a thousandfold": (lambda f: filled(f, 2**30), "declare"),
    "a shape of 10^18": (lambda f: npz(f, npy("'|u1'", "(1000000000, 1000000000)", bytes(16))), "another size"),
    "a shape of negative sizes": (lambda f: npz(f, npy("'|u1'", "(-4, -4)", bytes(16))), "without pickle"),
    "objects": (lambda f: npz(f, npy("'|O'", "(1,)", b"\x80\2cos\nsystem\n(U\2idtR.")), "without pickle"),
    "a header that calls": (lambda f: npz(f, npy("__import__('os').system('id')", "(1,)", b"")), "without pickle"),
    "a header of 1 MB": (lambda f: npz(f, npy("'|u1'" + " " * (1 << 20), "(1,)", b"\0", b"\2\0")), "without pickle"),
    "brackets 5,000 deep": (lambda f: npz(f, npy("[" * 5000 + "]" * 5000, "(1,)", b"")), "without pickle"),
    "a dtype with ESC": (lambda f: npz(f, npy("[('\\x1b[2J', '|u1')]", "(1,)", b"\0")), r"\\x1b"),
    "text of 10^9 characters": (lambda f: npz(f, npy("'<U1000000000'", "(1,)", b"")), "another size|without pickle"),
    "2,000 arrays": (lambda f: zip_of(f, {f"{k}.npy": PIXEL for k in range(2000)}), "2,000 arrays"),
    "bytes that are not a zip": (lambda f: f.write_bytes(b"PK\3\4" + bytes(100)), "zip archive|not an .npz"),
}


def png_of(file: Path, width: int, height: int) -> Path:
    """A PNG that says that it has so many pixels, and holds a few."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return file


def picture(file: Path, side: int = 8) -> Path:
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(file)
    return file


def small_result(folder: Path, entries: Mapping[int, object], **changes: object) -> Path:
    """An `attack_result.pt` of one weight, with these entries of its test images."""
    content = {
        "model_name": "preactresnet18", "num_classes": 4, "model": {"w": torch.zeros(2)}, "img_size": (8, 8, 3),
        "bd_test": {"bd_data_container": {"data_dict": dict(entries)}},
    }  # fmt: skip
    torch.save(content | changes, folder / "attack_result.pt")
    return folder / "attack_result.pt"


def with_pickle(folder: Path, field: bytes, value: bytes) -> Path:
    """An `attack_result.pt` with one field of this pickle."""
    plain = text("model_name") + text("preactresnet18") + text("num_classes") + b"K\4" + text("model") + GOOD
    return archive(folder / "attack_result.pt", b"}(" + plain + field + value + b"u")
