"""Recognise the kind of a file by its first bytes, and say what to do about it."""

import re
from pathlib import Path

from rnp_mlflow.errors import RnpError
from rnp_mlflow.loading.archives import directory

TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch/serialization.py, MAGIC_NUMBER as written
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")
PICKLE_AS_TEXT = (b"(dp", b"(lp", b"ccopy_reg\n", b"ccollections\n", b"ctorch", b"cnumpy")  # protocols 0 and 1
PYTHON = re.compile(rb"^(import \w|from [\w.]+ import |def \w+\(|class \w+[(:])", re.M)
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF")
_SAVE = "torch.save(model.state_dict(), FILE)"

# kind → what the file is, and what to do. {file} is replaced by the file's name, {start} by its first words.
HINTS = {
    "empty": "is empty: the copy or download failed; fetch it again",
    "lfs": "is a git-lfs pointer, not the file itself: run `git lfs pull` in its repository and give what comes",
    "html": "is a web page (HTML), not a model or data file: the download gave a page; fetch the file itself",
    "xml": "is an XML document, not a model or data file ({start}): the download gave a message; fetch the file itself",
    "json": "is JSON, not a model or data file ({start}): if the download gave a message, fetch the file itself",
    "python": f"is Python source, not weights: run it where it belongs, save the weights, {_SAVE}, and give that",
    "text": "is plain text, not a model or data file ({start}): if the download gave a message, fetch the file itself",
    "zeros": "holds only zero bytes at its start: the copy or download failed; fetch it again",
    "matlab": "is a MATLAB file (.mat): images are taken as .npz with x and y, weights as PyTorch's; convert it",
    "msgpack": "is a MessagePack file (Flax or JAX): only PyTorch models are taken; convert its weights to PyTorch",
    "hdf5": "is an HDF5 file (Keras or TensorFlow): only PyTorch models are taken; convert its weights to PyTorch",
    "keras": "is a Keras archive: only PyTorch models are taken; convert its weights to PyTorch",
    "compressed": "is compressed (gzip, bzip2, xz, zstd, 7z or rar): unpack it and give the file inside",
    "tar": "is a tar archive: unpack it (tar xf {file}) and give the file inside",
    "zip": "is a plain zip archive: unpack it (unzip {file}) and give the file inside",
    "torchscript": "is a TorchScript archive (torch.jit.save): it contains code, which is never run here. Load the "
    f"original model elsewhere, save its weights with {_SAVE}, and give that file",
    "pickle": "is a plain Python pickle, which is never unpickled here: load it elsewhere, save its weights with "
    f"{_SAVE}, and give that file",
    "onnx": f"is an ONNX graph, not PyTorch weights: save the weights of the original model with {_SAVE}",
    "gguf": "is a GGUF file (a language model): only image classifiers are taken",
    "picture": "is a picture or document, not a model or data file",
    "npy": "is a single numpy array (.npy): images are taken as .npz with x and y, weights as a state dict",
    "npz": "is a numpy archive (.npz), which holds images, not weights; give it as data",
    "torch": "is a torch file, which holds weights, not images; give it as checkpoint",
    "legacy": "is a torch file, which holds weights, not images; give it as checkpoint",
    "pt2": "is a torch.export archive, which holds weights, not images; give it as checkpoint",
    "safetensors": "is a safetensors file, which holds weights, not images; give it as checkpoint",
}


def refuse(file: Path, error: type[RnpError], taken: tuple[str, ...]) -> None:
    """Refuse every known kind of file that is not in `taken`; files of unknown kind pass.

    Raises:
        error: the file is of another kind.
    """
    kind = kind_of(file)
    if kind is not None and kind not in taken:
        raise error(f"{file} {HINTS[kind].format(file=file.name, start=_first_words(file))}")


def kind_of(file: Path) -> str | None:
    """Return the key of `HINTS` for the file's first bytes; None if they are not recognised."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(b"PK\3\4"):
        return _kind_of_zip(file)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = {
        "empty": not head,
        "lfs": head.startswith(b"version https://git-lfs"),
        "html": text.startswith((b"<!doctype html", b"<html", b"<head"))
        or (text.startswith(b"<?xml") and b"<html" in text),
        "xml": text.startswith(b"<?xml") or re.match(rb"<[a-z][\w:-]*[\s>]", text) is not None,
        "hdf5": head.startswith(b"\x89HDF\r\n\x1a\n"),
        "compressed": head.startswith(COMPRESSED),
        "tar": head[257:262] == b"ustar",
        "legacy": head.startswith(TORCH_LEGACY),
        "pickle": (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"))
        or head.startswith(PICKLE_AS_TEXT),
        "npy": head.startswith(b"\x93NUMPY"),
        "gguf": head.startswith(b"GGUF"),
        "picture": head.startswith(PICTURES),
        "safetensors": head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 100 * 2**20,
        "onnx": _is_onnx(head),
        "matlab": head.startswith(b"MATLAB "),
        "msgpack": (b"\x81" <= head[:1] <= b"\x8f" and (b"\xa1" <= head[1:2] <= b"\xbf" or head[1:2] == b"\xd9"))
        or head[:1] in (b"\xde", b"\xdf"),
        "zeros": not head.strip(b"\0"),
        "json": _is_text(head) and text.startswith((b"{", b"[")),
        "python": _is_text(head) and PYTHON.search(head) is not None,
        "text": _is_text(head),
    }
    return next((kind for kind, matches in found.items() if matches), None)


def _kind_of_zip(file: Path) -> str | None:
    """Recognise the kind of a zip archive by the names in it; None if its directory is broken."""
    try:
        names = [entry.filename for entry in directory(file)[0]]
    except Exception:  # a broken file can raise anything
        return None
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends or any("/code/" in name for name in names):
        return "torchscript"
    if any(name.endswith("_weights_config.json") for name in names):
        return "pt2"
    if "data.pkl" in ends:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    return "keras" if "model.weights.h5" in ends else "zip"


def _is_onnx(head: bytes) -> bool:
    """Whether this is a protobuf message with a small version number first and an ASCII name second."""
    return (
        head[:1] == b"\x08" and head[1:2] <= b"\x20" and head[2:3] == b"\x12" and head[4 : 4 + head[3]].isascii()
        if len(head) > 8 and head[3]
        else False
    )


def _is_text(head: bytes) -> bool:
    """Whether these first bytes of a file are printable UTF-8; a character may be cut off at the end."""
    words = head.decode("utf-8", "replace").rstrip("\ufffd").lstrip("\ufeff")
    return "\ufffd" not in words and all(each.isprintable() or each in "\t\r\n\f" for each in words)


def _first_words(file: Path) -> str:
    """Return the start of a text for a message: printable, on one line, in quotes."""
    with file.open("rb") as stream:
        words = " ".join(stream.read(512).decode("utf-8", "replace").split())
    return ascii(words[:60] + ("…" if len(words) > 60 else "")).replace("\\u2026", "…")
