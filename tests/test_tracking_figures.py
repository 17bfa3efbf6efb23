"""The figures of a run: what a reader can take from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from rnp_mlflow.tracking import figures


def test_the_masks_picture_shows_beside_each_layers_name_where_its_values_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    heights: list[int] = []
    original_savefig = Figure.savefig

    def savefig(figure: Figure, file: Path, *, metadata: dict[str, None]) -> None:
        drawn.append(figure)
        original_savefig(figure, file, metadata=metadata)

    monkeypatch.setattr(Figure, "savefig", savefig)
    for layers in (1, 121):
        mask = {f"layer{k}": torch.tensor(3 * [0.9 * k / layers] + [1.0]) for k in range(layers)}
        figures.mask_histograms(tmp_path / "mask.png", mask)
        heights.append(Image.open(tmp_path / "mask.png").height)
        ax = drawn[-1].axes[0]
        counts, (left, right, bottom, top) = ax.images[0].get_array(), ax.images[0].get_extent()
        assert isinstance(counts, np.ma.MaskedArray)
        assert [label.get_text() for label in ax.get_yticklabels()] == list(mask)
        for tick, (name, values) in zip(ax.get_yticks(), mask.items(), strict=True):
            row = counts.filled(0)[int((tick - top) / (bottom - top) * layers)]
            places = left + (right - left) * (np.nonzero(row)[0] + 0.5) / len(row)
            assert row[row > 0].tolist() == [3, 1], name
            assert places == pytest.approx([float(values[0]), 1.0], abs=1 / len(row)), name
    assert 120 * 18 < heights[1] - heights[0] < 120 * 30, "a row has room for its name, whatever the number of layers"
