"""Datasets from scikit-learn, folders and npz files, subsets, and images on disk, against hand-made cases."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensors import seeded

from rnp_mlflow.data import sources, spill, subset
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.errors import DataError


def test_digits_are_real_whole_and_always_the_same() -> None:
    from sklearn.datasets import load_digits

    data = sources.load("digits")
    assert len(data.train) == 1297 * 4
    assert data.test is not None
    assert len(data.test) == 500
    raw = load_digits()
    labels = torch.cat([data.train.labels[:1297], data.test.labels]).bincount()
    assert labels.tolist() == np.bincount(raw.target).tolist()
    assert data.digest() == sources.load("digits").digest()
    plain = data.train.images[:1297].flatten(1)
    assert not (data.test.images.flatten(1)[:, None] == plain[None]).all(2).any(), "a test image is in the training set"


def make_folder(root: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 4, size: int = 8) -> Path:
    for part in ("train", "test"):
        for k, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for n in range(count):
                pixels = np.full((size, size, 3), 100 * k + n, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{n}.png")
    return root


def test_folder_reads_pixels_labels_and_balanced_subsets(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "an odd, näme")
    data = sources.load("folder", str(root))
    assert data.classes == ("cat", "dog")
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    part = sources.load("folder", str(root), train_size=4, test_size=2)
    assert part.train.labels.tolist() == [0, 0, 1, 1]
    larger = sources.load("folder", str(root), image_size=16)
    assert larger.train.shape == (3, 16, 16)
    as_cifar = sources.load("cifar10", str(root))
    assert as_cifar.mean == (0.4914, 0.4822, 0.4465)


def test_folder_errors_say_where(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    (root / "train/cat/9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9\.png is not an image"):
        sources.load("folder", str(root))
    (root / "train/cat/9.png").unlink()
    Image.new("RGB", (8, 9)).save(root / "train/cat/9.png")
    with pytest.raises(DataError, match=r"9\.png is 8 × 9, .* is 8 × 8: give image_size"):
        sources.load("folder", str(root))
    with pytest.raises(DataError, match="100 images were requested"):
        sources.load("folder", str(root), train_size=100)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no array x_train"),
        ({"x_train": np.zeros((4, 8, 8, 3))}, "uint8"),
        ({"x_train": np.zeros((4, 8, 8, 2), np.uint8)}, "uint8 NHWC"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8), "y_train": np.array([0, 1, 0])}, "as many"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8), "y_train": np.array([0, 1, -1, 0])}, "integers from 0"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8), "y_train": np.array([0.5] * 4)}, "integers"),
    ],
)
def test_npz_errors_say_what_is_wrong(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    good = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
    full = {"x_train": good[0], "y_train": good[1], "x_test": good[0], "y_test": good[1]} | arrays
    np.savez(tmp_path / "a.npz", **(full if arrays else {"other": good[0]}))
    with pytest.raises(DataError, match=message):
        sources.load("npz", str(tmp_path / "a.npz"))


def test_npz_reads_back_what_was_written(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    y = np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y[:, None], x_test=x, y_test=y)
    data = sources.load("npz", str(tmp_path / "a.npz"))
    assert torch.equal(data.train.images.permute(0, 2, 3, 1), torch.from_numpy(x))
    assert data.test is not None
    assert data.test.labels.tolist() == y.tolist()
    assert data.mean == pytest.approx((x / 255).mean((0, 1, 2)), abs=1e-4)


def test_an_empty_class_is_refused() -> None:
    whole = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 2, 2]))
    with pytest.raises(DataError, match="'b' has no training image"):
        Dataset("d", whole, whole, ("a", "b", "c"), (0.5,), (0.5,))


def test_subsets_are_even_over_the_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 4)
    assert labels[subset.stratified_indices(labels, 12, seeded())].bincount().tolist() == [4, 4, 4]
    assert labels[subset.stratified_indices(labels, 30, seeded())].bincount().tolist() == [13, 13, 4]
    given = subset.defence_indices(labels, 0.2, seeded())
    held = subset.holdout_indices(labels[given], 0.25, seeded())
    assert len(held.unique()) == len(held) == round(0.25 * len(given))
    assert held.max() < len(given)
    assert len(subset.holdout_indices(labels[:3], 0.01, seeded())) == 1
    with pytest.raises(DataError, match="leaves 0 to train with"):
        subset.holdout_indices(labels[:2], 0.99, seeded())
    with pytest.raises(DataError, match="fewer than two"):
        subset.defence_indices(labels, 0.05, seeded())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs the kernel's word on what is resident")
def test_many_images_lie_on_disk_and_leave_memory_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MiB of pixels read through a mapping of which little stays resident; small ones are plain memory."""
    monkeypatch.setattr(spill, "PAUSE", 0.01)
    assert spill.allocate(2, (3, 4, 4)).base is None
    monkeypatch.setattr(spill, "LIMIT", 1 << 20)
    threads = threading.active_count()
    images = spill.allocate(64, (4, 1024, 1024))
    for k, image in enumerate(images):
        image[:] = k
    assert [int(image.sum(dtype=np.int64)) // image.size for image in images] == list(range(64))
    time.sleep(0.5)
    assert resident(images) < 16 << 20
    assert torch.equal(
        torch.from_numpy(images)[torch.tensor([63])], torch.full((1, 4, 1024, 1024), 63, dtype=torch.uint8)
    )
    del images, image
    time.sleep(0.2)
    assert threading.active_count() == threads, "the file goes with the array"


def resident(images: np.ndarray) -> int:
    """Bytes of this mapping that are in memory, as the kernel counts them."""
    start = f"{images.ctypes.data:x}-"
    lines = Path("/proc/self/smaps").read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith(start))
    return next(int(line.split()[1]) << 10 for line in lines[first:] if line.startswith("Rss:"))
