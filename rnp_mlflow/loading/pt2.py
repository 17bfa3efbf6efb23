"""`torch.export` archives (pt2): raw bytes and a JSON table; the graph in them is ignored."""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading.archives import check_zip

# torch/_export/serde/schema.py, ScalarType
_PT2_TYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
              7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}  # fmt: skip


def read_pt2(file: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a `torch.export` archive; its graph is ignored.

    Raises:
        ModelError: the file is broken or not such an archive, or a tensor in it is pickled.
    """
    check_zip(file, stored=True, error=ModelError)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            table = next((name for name in names if name.endswith("_weights_config.json")), None)
            if table is None:
                raise ModelError(f"{file} is not a torch.export archive: it has no table of weights")
            config = json.loads(archive.read(table))["config"]
            folder = table.rpartition("/")[0]
            return {key: _pt2_tensor(archive, folder, entry) for key, entry in config.items()}
    except ModelError:
        raise
    except Exception as error:  # a broken or hostile file can raise anything
        raise ModelError(f"{file} cannot be read as a torch.export archive: {str(error)[:160]}") from None


def _pt2_tensor(archive: zipfile.ZipFile, folder: str, entry: Mapping[str, Any]) -> Tensor:
    if entry["use_pickle"]:
        raise ValueError("a tensor in it is pickled")
    meta = entry["tensor_meta"]
    sizes, strides = ([int(item["as_int"]) for item in meta[name]] for name in ("sizes", "strides"))
    offset, kind = int(meta["storage_offset"]["as_int"]), _PT2_TYPES[meta["dtype"]]
    values = torch.frombuffer(bytearray(archive.read(f"{folder}/{entry['path_name']}")), dtype=kind)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if min([*sizes, *strides, offset, 0]) < 0 or math.prod(sizes) > len(values) or last >= len(values):
        raise ValueError("a tensor in it is larger than its bytes")
    return values.as_strided(sizes, strides, offset)
