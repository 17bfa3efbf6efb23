"""Numpy archives (npz), read without pickle."""

import math
import zipfile
from pathlib import Path

import numpy as np

from rnp_mlflow.errors import DataError
from rnp_mlflow.loading import foreign
from rnp_mlflow.loading.archives import check_zip
from rnp_mlflow.loading.regular import check_regular

MOST_ARRAYS = 1000


def read_npz(file: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a numpy archive.

    Raises:
        DataError: the file is not such an archive, an array is pickled, or it declares more than it contains.
    """
    check_regular(file, DataError)
    foreign.refuse(file, DataError, taken=("npz", "zip"))
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is not an .npz file")
    check_zip(file, stored=False, error=DataError)
    try:
        with zipfile.ZipFile(file) as archive:
            if len(archive.infolist()) > MOST_ARRAYS:
                raise ValueError(f"it has {len(archive.infolist()):,} arrays")
            for entry in archive.infolist():
                _check_npy(archive, entry)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # a broken or hostile file can raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{file} is not an .npz file that can be read without pickle: {reason}") from None


def _check_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
        if not kind.hasobject and math.prod(shape) * kind.itemsize != entry.file_size - stream.tell():
            raise ValueError(f"{entry.filename} declares the shape {shape}, but its content has another size")
