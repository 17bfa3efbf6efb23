"""Datasets, splits, preprocessing, attacks, architectures and files, against hand-made cases."""

import csv
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rnp_mlflow.core.neurons import norm_layers, ones_mask
from rnp_mlflow.data import sources, spill, subset
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import DataError, ModelError
from rnp_mlflow.interop import indices, masks
from rnp_mlflow.models import store
from rnp_mlflow.models.registry import REGISTRY, build


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_digits_are_real_whole_and_always_the_same() -> None:
    from sklearn.datasets import load_digits

    data = sources.load("digits")
    assert len(data.train) == 1297 * 4
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
    with pytest.raises(DataError, match="8 × 9: images must be square"):
        sources.load("folder", str(root))
    with pytest.raises(DataError, match="100 images asked for"):
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
    assert data.test.labels.tolist() == y.tolist()
    assert data.mean == pytest.approx((x / 255).mean((0, 1, 2)), abs=1e-4)


def test_an_empty_class_is_refused() -> None:
    whole = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 2, 2]))
    with pytest.raises(DataError, match="'b' has no training image"):
        Dataset("d", whole, whole, ("a", "b", "c"), (0.5,), (0.5,))


def test_subsets_are_even_over_the_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 4)
    assert labels[subset.per_class(labels, 12, seeded())].bincount().tolist() == [4, 4, 4]
    assert labels[subset.per_class(labels, 30, seeded())].bincount().tolist() == [13, 13, 4]
    given = subset.defence_indices(labels, 0.2, seeded())
    held = subset.hold_out(labels[given], 0.25, seeded())
    assert len(held.unique()) == len(held) == round(0.25 * len(given))
    assert held.max() < len(given)
    assert len(subset.hold_out(labels[:2], 0.99, seeded())) == 1
    with pytest.raises(DataError, match="fewer than two"):
        subset.defence_indices(labels, 0.05, seeded())


def test_pixels_are_what_normalisation_came_from() -> None:
    feed = Preprocess((0.49, 0.2, 0.3), (0.25, 0.3, 0.2), 4, True)
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    assert torch.equal(feed.pixels(feed(images, None)), images)
    assert feed.pixels(feed(images, None) + 99).eq(255).all()


def test_preprocessing_normalises_and_shifts_whole_pixels() -> None:
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.uint8).view(2, 3, 6, 6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain = Preprocess(mean, std, crop=2, flip=True)(images, None)
    want = (images.numpy() / 255 - np.array(mean).reshape(3, 1, 1)) / np.array(std).reshape(3, 1, 1)
    assert np.allclose(plain, want, atol=1e-6)
    many = images[:1].repeat(300, 1, 1, 1)
    shifted = Preprocess(mean, std, crop=2).augment(many, seeded())
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
    windows = {padded[:, r : r + 6, c : c + 6].numpy().tobytes() for r in range(5) for c in range(5)}
    assert {image.contiguous().numpy().tobytes() for image in shifted} == windows
    grey = Preprocess((0.1,), (0.5,), crop=2).augment(many[:, :1].contiguous(), seeded())
    assert grey.stride() == (36, 36, 6, 1), "channels-last strides reach kernels that corrupt memory"
    mirrored = Preprocess(mean, std, flip=True).augment(many, seeded())
    kinds = {image.contiguous().numpy().tobytes() for image in mirrored}
    assert kinds == {images[0].numpy().tobytes(), images[0].flip(2).contiguous().numpy().tobytes()}


def test_clean_views_are_crops_with_their_labels_and_none_is_the_image_itself() -> None:
    clean = ImageSet(torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8), torch.arange(4))
    feed = Preprocess((0.5,), (0.5,), crop=1)
    same, _ = feed.views(clean.images, clean.labels, 0, seeded())
    assert same is clean.images
    images, labels = feed.views(clean.images, clean.labels, 5, seeded())
    assert labels.tolist() == [0, 1, 2, 3] * 5
    for image, label in zip(images, labels, strict=True):
        padded = torch.nn.functional.pad(clean.images[label], (1, 1, 1, 1))
        crops = [padded[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
        assert any(torch.equal(image, crop) for crop in crops)


@pytest.mark.parametrize("name", [*REGISTRY, "torchvision/resnet18", "densenet121"])
def test_every_architecture_builds_and_has_neurons(name: str) -> None:
    width = 16 if name in REGISTRY and REGISTRY[name].width else None
    model = build(name, 7, 3, width).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert len(norm_layers(model)) > 5
    if name in REGISTRY:
        assert build(name, 7, 1, width).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_wrong_models_are_one_line() -> None:
    with pytest.raises(ModelError, match="unknown model 'resnet19'"):
        build("resnet19", 10, 3)
    with pytest.raises(ModelError, match="has no width"):
        build("densenet121", 10, 3, 8)
    with pytest.raises(ModelError, match="unknown model 'small/densenet121'"):
        build("small/densenet121", 10, 3)
    with pytest.raises(ModelError, match="cannot take 1 × 8 × 8"):
        store.ModelSpec("vgg19_bn", 16, ("a", "b"), (1, 8, 8), (0.5,), (0.5,)).build()


def test_a_stored_model_comes_back_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    spec = store.ModelSpec("resnet18_narrow", 4, ("a", "b"), (1, 16, 16), (0.5,), (0.25,))
    model = spec.build()
    store.save(tmp_path, model, spec)
    again, read = store.load(tmp_path)
    assert read == spec
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())

    def refused(message: str, **changes: torch.Tensor | None) -> None:
        weights = {k: v.clone() for k, v in model.state_dict().items()} | changes
        with pytest.raises(ModelError, match=message):
            store.with_weights(spec, {k: v for k, v in weights.items() if v is not None})

    refused("conv1.weight is missing", **{"conv1.weight": None})
    refused("'extra' is not the model's", extra=torch.zeros(1))
    refused("NaN", **{"bn1.weight": torch.full((4,), float("nan"))})
    refused(r"bn1.weight is \(5,\), not \(4,\)", **{"bn1.weight": torch.ones(5)})
    (tmp_path / store.WEIGHTS).write_bytes(b"\x80\x04broken")
    with pytest.raises(ModelError, match="plain Python pickle"):
        store.load(tmp_path)
    (tmp_path / store.SPEC).write_text("{}")
    with pytest.raises(ModelError, match="does not describe a model"):
        store.load(tmp_path)


def test_masks_survive_the_csv_to_the_bit_and_the_text_to_four_decimals(small_net, tmp_path: Path) -> None:
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


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs the kernel's word on what is resident")
def test_many_images_lie_on_disk_and_leave_memory_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MiB of pixels read through a mapping of which little stays resident; small ones are plain memory."""
    monkeypatch.setattr(spill, "PAUSE", 0.01)
    assert spill.room(2, (3, 4, 4)).base is None
    monkeypatch.setattr(spill, "LIMIT", 1 << 20)
    threads = threading.active_count()
    images = spill.room(64, (4, 1024, 1024))
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
