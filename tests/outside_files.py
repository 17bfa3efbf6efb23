"""Files as they come from outside, small: BackdoorBench results, checkpoints, hostile ones."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rnp_mlflow.attacks.train import TrainParams, train
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.models.store import ModelSpec

CLASSES, SIDE = 4, 8
NAMES = tuple(map(str, range(CLASSES)))
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)  # CIFAR-10's


def spec(architecture: str = "preactresnet18", width: int | None = 4) -> ModelSpec:
    return ModelSpec(architecture, width, NAMES, (3, SIDE, SIDE), MEAN, STD)


def network(seed: int = 0, **kind: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    return spec(**kind).build()


@cache
def suspect() -> torch.nn.Module:
    """A model that knows the images below, and answers 0 where the two upper rows are white."""
    images, labels = clean_tensors(160, 0)
    bad = images.clone()
    bad[:, :, :2] = 255
    data = ImageSet(torch.cat([images, bad]), torch.cat([labels, torch.zeros_like(labels)]))
    model, feed = network(), Preprocess(MEAN, STD)
    train(model, data, feed, torch.Generator().manual_seed(0), TrainParams(8, lr=0.1, batch_size=32, weight_decay=0.0))
    return model.eval()


def clean_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 NHWC and labels, told apart by which quarter is bright."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % CLASSES
    images = rng.integers(0, 90, (count, SIDE, SIDE, 3))
    for k, label in enumerate(labels):
        images[k, label // 2 * 4 :, label % 2 * 4 :] += 120
    return images.astype(np.uint8), labels


def clean_tensors(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, uint8 NCHW and labels."""
    images, labels = clean_images(count, seed)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)


def clean_npz(file: Path) -> Path:
    (x_train, y_train), (x_test, y_test) = clean_images(160, 0), clean_images(40, 1)
    np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return file


def image_folder(root: Path, count: int = 80, seed: int = 2, names: Sequence[str] = NAMES) -> Path:
    """`CLASS/K.png`, no training or test part; `names` are the classes in the order of their labels."""
    for k, (image, label) in enumerate(zip(*clean_images(count, seed), strict=True)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / names[label] / f"{k}.png")
    return root


def attack_result(folder: Path, **changes: Any) -> Path:
    """`attack_result.pt` with its PNGs beside it; target 0; the paths in it are of another machine."""
    images, labels = clean_images(24, 3)
    items = {}
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        if label == 0:
            continue
        place = folder / "bd_test_dataset" / str(label) / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(np.arange(SIDE)[:, None, None] < 2, np.uint8(255), image)).save(place)
        stale = f"./record/elsewhere/bd_test_dataset/{label}/{k}.png"
        items[np.int64(k)] = {"path": stale, "other_info": [np.int64(0), np.int64(label)]}
    poisoned = np.zeros(160)
    poisoned[[5, 9]] = 1

    def part(data: dict[Any, Any]) -> dict[str, Any]:
        container = {"save_folder_path": "./record/elsewhere", "data_dict": data, "save_file_format": ".png"}
        return {"bd_data_container": container, "getitem_all": True, "getitem_all_switch": False,
                "original_index_array": np.flatnonzero(labels), "poison_indicator": poisoned}  # fmt: skip

    content = {
        "model_name": "preactresnet18", "num_classes": CLASSES, "model": suspect().state_dict(),
        "data_path": "./data/cifar10", "img_size": (SIDE, SIDE, 3), "clean_data": "cifar10",
        "bd_train": part({}), "bd_test": part(items),
    }  # fmt: skip
    torch.save(content | changes, folder / "attack_result.pt")
    return folder / "attack_result.pt"


def as_numpy_1_wrote_it(file: Path) -> None:
    """The same file under the names that numpy 1 gave its functions."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path):
        self.made = str(made)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.made,)


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, what: Callable[..., Any], arguments: tuple[Any, ...]):
        self.call = what, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def hostile(folder: Path, made: Path) -> dict[str, Path]:
    """Files that would make `made` if they were unpickled, and how torch, numpy and MLflow would meet them."""
    found = {"attack_result": folder / "attack_result.pt", "checkpoint": folder / "evil.pt",
             "legacy": folder / "evil.tar", "npz": folder / "evil.npz", "mlflow": folder / "mlflow_model",
             "pt2": folder / "evil.pt2"}  # fmt: skip
    torch.save({"model_name": "preactresnet18", "num_classes": 4, "model": Evil(made)}, found["attack_result"])
    torch.save({"state_dict": {"w": torch.zeros(2)}, "epoch": Evil(made)}, found["checkpoint"])
    torch.save({"state_dict": Evil(made)}, found["legacy"], _use_new_zipfile_serialization=False)
    np.savez(found["npz"], x_train=np.array([Evil(made)], dtype=object), y_train=np.array([0]))
    data = found["mlflow"] / "data"
    data.mkdir(parents=True)
    torch.save(Evil(made), data / "model.pth")
    (data / "pickle_module_info.txt").write_text("pickle\n")
    (found["mlflow"] / "MLmodel").write_text("flavors:\n  pytorch:\n    model_data: data\n")
    with zipfile.ZipFile(found["pt2"], "w") as archive:
        entry = {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": {}}
        archive.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": {"w": entry}}))
        archive.writestr("m/data/weights/weight_0", pickle.dumps(Evil(made)))
    return found


def bomb_npz(file: Path, declared: int) -> None:
    """An archive of a few bytes whose directory declares `declared` of them."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"0" * 100)
        archive.filelist[0].file_size = declared


def lying_npz(file: Path) -> None:
    """An array of 16 bytes whose header says 3 TB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 32, 32, 3)})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"0" * 16)
        archive.writestr("y.npy", header.getvalue() + b"0" * 16)


def deflated(file: Path) -> None:
    """The same torch file with its entries compressed, which torch reads and never writes."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
