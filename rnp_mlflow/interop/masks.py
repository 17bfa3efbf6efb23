"""Mask files: our csv (full precision) and the text format of BackdoorBench and the RNP authors.

csv: header `layer,index,value`. Text: header `No \\t Layer Name \\t Neuron Idx \\t Mask Score `, rows
`number \\t layer \\t index \\t 0.9603 ` with four decimals. Both list layers in `state_dict` order.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rnp_mlflow.core.neurons import Mask, check_mask
from rnp_mlflow.core.units import units_of
from rnp_mlflow.errors import MaskError
from rnp_mlflow.loading import check_regular

LARGEST = 64 << 20  # bytes
CSV_HEADER = ("layer", "index", "value")


def rows(mask: Mapping[str, Tensor]) -> list[tuple[str, int, float]]:
    """Return (layer, channel, value) of every neuron, in order."""
    return [(name, k, v) for name, values in mask.items() for k, v in enumerate(values.tolist())]


def write_csv(file: Path, mask: Mapping[str, Tensor], only: Tensor | None = None) -> None:
    """Write our csv; reading it returns the same float32 values.

    only: positions (in the flattened mask) of the neurons to write, in this order; None: all.
    """
    listed = rows(mask)
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        chosen = listed if only is None else [listed[k] for k in only.tolist()]
        writer.writerows((layer, k, repr(value)) for layer, k, value in chosen)


def write_text(file: Path, mask: Mapping[str, Tensor]) -> None:
    """Write BackdoorBench's `mask_values.txt`."""
    lines = ["No \t Layer Name \t Neuron Idx \t Mask Score \n"]
    lines += [f"{n} \t {layer} \t {k} \t {v:.4f} \n" for n, (layer, k, v) in enumerate(rows(mask))]
    file.write_text("".join(lines))


def read(file: Path, model: nn.Module) -> Mask:
    """Read either format, and check that the mask belongs to the model; layers are in the model's order.

    Raises:
        MaskError: the file is unreadable, a neuron is missing, repeated or unknown, or a value is not in [0, 1].
    """
    expected = {name: layer.count for name, layer in units_of(model).items()}
    values = {name: torch.full((count,), math.nan) for name, count in expected.items()}
    for number, layer, index, value in parse(file):
        location = f"{file}, line {number}"
        if layer not in values or not 0 <= index < expected[layer]:
            raise MaskError(f"{location}: the mask is not this model's, which has no neuron {index} in {layer}")
        if not math.isnan(values[layer][index]):
            raise MaskError(f"{location}: neuron {index} of {layer} occurs twice")
        if not 0 <= value <= 1:
            raise MaskError(f"{location}: mask value {value} of neuron {index} of {layer} is not in [0, 1]")
        values[layer][index] = value
    for name, layer_values in values.items():
        if missing := int(layer_values.isnan().sum()):
            lack = f"it lacks {missing} of {len(layer_values)} neurons of {name}"
            raise MaskError(f"{file}: the mask is not this model's: {lack}")
    check_mask(model, values)
    return values


def parse(file: Path) -> list[tuple[int, str, int, float]]:
    """Return (line number, layer, channel, value) of every row of either format."""
    check_regular(file, MaskError, LARGEST)
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MaskError(f"mask file {file} cannot be read: {error}") from None
    if not lines:
        raise MaskError(f"mask file {file} is empty")
    is_csv = tuple(lines[0].strip().split(",")) == CSV_HEADER
    found = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = line.split(",") if is_csv else line.split()[1:]
        try:
            layer, index, value = cells
            found.append((number, layer, int(index), float(value)))
        except ValueError:
            raise MaskError(f"{file}, line {number}: not a mask row: {line.strip()[:60]!r}") from None
    return found
