"""Mask and index files, ours and BackdoorBench's."""

import csv
from pathlib import Path

import pytest
import torch
from tensors import seeded
from torch import nn

from rnp_mlflow.core.neurons import ones_mask
from rnp_mlflow.errors import DataError
from rnp_mlflow.interop import indices, masks


def test_masks_survive_the_csv_to_the_bit_and_the_text_to_four_decimals(small_net: nn.Module, tmp_path: Path) -> None:
    mask = {name: torch.rand(len(v), generator=seeded(7)) for name, v in ones_mask(small_net).items()}
    masks.write_csv(tmp_path / "m.csv", mask)
    masks.write_text(tmp_path / "m.txt", mask)
    exact, rough = masks.read(tmp_path / "m.csv", small_net), masks.read(tmp_path / "m.txt", small_net)
    assert all(torch.equal(exact[k], mask[k]) for k in mask)
    assert all((rough[k] - mask[k]).abs().max() <= 5.1e-5 for k in mask)
    rows = list(csv.reader((tmp_path / "m.csv").open()))
    assert rows[0] == ["layer", "index", "value"]
    assert [row[:2] for row in rows[1:3]] == [["1", "0"], ["1", "1"]]
    assert (tmp_path / "m.txt").read_text().splitlines()[0] == "No \t Layer Name \t Neuron Idx \t Mask Score "


def test_index_files_round_trip(tmp_path: Path) -> None:
    labels = torch.arange(40) % 2
    indices.write(tmp_path / "i.txt", torch.tensor([5, 2, 9, 0]))
    assert indices.read(tmp_path / "i.txt", labels).tolist() == [5, 2, 9, 0]
    for text, message in (
        ("1\n1\n2\n4\n", "twice"),
        ("-1\n", "0 to 39"),
        ("", "at least one"),
        ("1\n3\n5\n", "class 0"),
    ):
        (tmp_path / "i.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            indices.read(tmp_path / "i.txt", labels)
