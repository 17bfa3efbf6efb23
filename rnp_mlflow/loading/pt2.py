"""`torch.export` archives (pt2): raw bytes and a JSON table; the graph in them is ignored."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading.archives import check_zip
from rnp_mlflow.loading.regular import check_regular
from rnp_mlflow.loading.tensors import strided

# torch/_export/serde/schema.py, ScalarType
_PT2_TYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
              7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}  # fmt: skip
LONGEST = 16 << 20  # bytes of the table of weights, at most


def read_pt2(file: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a `torch.export` archive; its graph is ignored.

    Raises:
        ModelError: the file is broken or not such an archive, or a tensor in it is pickled.
    """
    check_regular(file, ModelError)
    check_zip(file, stored=True, error=ModelError)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            table = next((name for name in names if name.endswith("_weights_config.json")), None)
            if table is None:
                raise ModelError(f"{file} is not a torch.export archive: it has no table of weights")
            if archive.getinfo(table).file_size > LONGEST:
                raise ModelError(f"{file} is refused: its table of weights is larger than {LONGEST:,} bytes")
            return Weights(archive, table.rpartition("/")[0]).read(json.loads(archive.read(table))["config"])
    except ModelError:
        raise
    except Exception as error:  # a broken or hostile file can raise anything
        raise ModelError(f"{file} cannot be read as a torch.export archive: {str(error)[:160]}") from None


class Weights:
    """The weights in a folder of an archive; several may be views of one entry, which is read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive, self.folder, self.found = archive, folder, dict[str, bytearray]()

    def read(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of the table."""
        return {key: self.tensor(entry) for key, entry in config.items()}

    def tensor(self, entry: Mapping[str, Any]) -> Tensor:
        """Return one tensor.

        Raises:
            ValueError: it is pickled, or larger than its bytes.
        """
        if entry["use_pickle"]:
            raise ValueError("a tensor in it is pickled")
        name, meta = entry["path_name"], entry["tensor_meta"]
        if name not in self.found:
            self.found[name] = bytearray(self.archive.read(f"{self.folder}/{name}"))
        values = torch.frombuffer(self.found[name], dtype=_PT2_TYPES[meta["dtype"]])
        sizes, strides = ([item["as_int"] for item in meta[part]] for part in ("sizes", "strides"))
        return strided(values, meta["storage_offset"]["as_int"], sizes, strides)
