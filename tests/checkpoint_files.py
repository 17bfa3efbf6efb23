"""One file for each row of docs/models.md: `MAKERS` maps its first column to what makes it."""

import argparse
import gzip
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import outside_files as files
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from rnp_mlflow.models import store
from rnp_mlflow.models.pixel_input import PixelInputModel
from rnp_mlflow.models.registry import build

Arguments = list[str]
MODEL, IMAGES = ["--model=preactresnet18"], ["--data=clean.npz", "--dataset=cifar10"]
KNOWN = [*MODEL, *IMAGES]
MAKERS: dict[str, Callable[[Path], list[Arguments]]] = {}
SAID: dict[str, str] = {}


def weights() -> dict[str, Tensor]:
    """Of a preactresnet18 of width 4 that has all images of clean.npz right."""
    return dict(files.suspect().state_dict())


def row(
    form: str, said: str | None = None
) -> Callable[[Callable[[Path], list[Arguments]]], Callable[[Path], list[Arguments]]]:
    """said: pattern of the error's line, for a form that is not taken."""

    def add(maker: Callable[[Path], list[Arguments]]) -> Callable[[Path], list[Arguments]]:
        MAKERS[form] = maker
        if said is not None:
            SAID[form] = said
        return maker

    return add


def saved(place: Path, content: Any, name: str = "w.pt", known: Arguments = KNOWN, **how: Any) -> list[Arguments]:
    torch.save(content, place / name, **how)
    return [[f"--checkpoint={place / name}", *known]]


def written(place: Path, content: bytes, name: str = "w.pt") -> list[Arguments]:
    (place / name).write_bytes(content)
    return [[f"--checkpoint={place / name}", *KNOWN]]


@cache
def tuned(name: str, side: int = 16, seed: int = 0, channels: int = 3) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """An untrained network, images uint8 NHWC, and labels by its own answers, four classes as even as can be.

    No other architecture with its weights gives these answers, but by chance.
    """
    torch.manual_seed(seed)
    model = build(name, 4, channels)
    images = np.random.default_rng(seed).integers(0, 256, (160, side, side, channels)).astype(np.uint8)
    middle, spread = (torch.tensor(v[:channels]).view(1, -1, 1, 1) for v in (files.MEAN, files.STD))
    batch = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - middle) / spread
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    with torch.no_grad():
        model.train()(batch)
        logits = model.eval()(batch)
        head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        scale = logits.std(0)
        head.bias.sub_(logits.mean(0)).div_(scale)
        head.weight.div_(scale[:, None])
        labels = model(batch).argmax(1).numpy()
    return model, images, labels


def own_images(place: Path, images: np.ndarray, labels: np.ndarray) -> Arguments:
    np.savez(place / "own.npz", x=images, y=labels)
    return [f"--data={place / 'own.npz'}", "--dataset=cifar10"]


@row("safetensors")
def safetensors(place: Path) -> list[Arguments]:
    save_file(weights(), place / "w.safetensors")
    return [[f"--checkpoint={place / 'w.safetensors'}", *KNOWN]]


@row("torch state dict")
def plain(place: Path) -> list[Arguments]:
    return saved(place, weights())


@row("torch file of before torch 1.6")
def legacy(place: Path) -> list[Arguments]:
    return saved(place, weights(), _use_new_zipfile_serialization=False)


@row("torch file under another ending, safetensors under `.pt`")
def endings(place: Path) -> list[Arguments]:
    save_file(weights(), place / "s.pt")
    torch.save(weights(), place / "t.safetensors")
    return [[f"--checkpoint={place / name}", *KNOWN] for name in ("s.pt", "t.safetensors")]


@row("state dict under `state_dict`, `model` or another usual name")
def nested(place: Path) -> list[Arguments]:
    names = ("state_dict", "model_state_dict", "model", "net", "network")
    return [
        each for name in names for each in saved(place, {name: weights(), "optimizer": {"state": {}}}, f"{name}.pt")
    ]


@row("the RNP authors' `.tar`")
def authors(place: Path) -> list[Arguments]:
    rest = {"epoch": 3, "clean_acc": 0.9, "bad_acc": 1.0, "optimizer": {"state": {}, "param_groups": []}}
    return saved(place, {"state_dict": weights(), **rest}, "w.tar")


@row("`netC` (WaNet, input-aware)")
def net_c(place: Path) -> list[Arguments]:
    others = {"netG": {"w": torch.zeros(2)}, "netM": {"w": torch.zeros(2)}, "optimizerC": {"state": {}}}
    return saved(place, {**others, "netC": weights(), "best_clean_acc": torch.tensor(0.9), "epoch_current": 3})


def garbled() -> dict[str, Tensor]:
    """Weights with which no image is right but by chance."""
    return {key: torch.zeros_like(value) + (value.ndim == 0) for key, value in weights().items()}


@row("weights beside averaged ones (`model_ema`)")
def beside_averaged(place: Path) -> list[Arguments]:
    averaged = {"n_averaged": torch.tensor(7)} | {f"module.{k}": v for k, v in garbled().items()}
    return saved(place, {"model_ema": averaged, "model": weights(), "epoch": 1})


@row("averaged weights alone (`state_dict_ema`)")
def averaged_alone(place: Path) -> list[Arguments]:
    return saved(place, {"state_dict_ema": weights(), "epoch": 1})


@row("`torch.optim.swa_utils.AveragedModel`")
def averaged_model(place: Path) -> list[Arguments]:
    return saved(place, torch.optim.swa_utils.AveragedModel(files.suspect()).state_dict())


@row("prefixes of wrappers (`module.`, `_orig_mod.`, Lightning's `net.`)")
def prefixes(place: Path) -> list[Arguments]:
    found = []
    for k, prefix in enumerate(("module.", "_orig_mod.", "net.", "_orig_mod.module.model.", "my_wrapper.")):
        found += saved(place, {"state_dict": {prefix + key: v for key, v in weights().items()}}, f"{k}.pt")
    return found


@row("without `num_batches_tracked` (old torchvision)")
def no_counters(place: Path) -> list[Arguments]:
    return saved(place, {k: v for k, v in weights().items() if not k.endswith("num_batches_tracked")})


@row("numpy numbers and arrays beside the weights")
def numpy_beside(place: Path) -> list[Arguments]:
    kinds = ("bool_", "int8", "int32", "int64", "uint8", "float16", "float32", "float64")
    scalars = {kind: getattr(np, kind)(1) for kind in kinds}
    arrays = {f"{kind}s": np.ones((2, 3), kind.rstrip("_")) for kind in kinds}
    words = {"name": np.str_("a"), "names": np.array(["a", "b"]), "objects": np.array([None, 1], dtype=object)}
    return saved(place, {"state_dict": weights(), **scalars, **arrays, **words})


@row("the script's arguments (`argparse.Namespace`) beside the weights")
def arguments_beside(place: Path) -> list[Arguments]:
    given = argparse.Namespace(lr=0.1, place=Path("/data/x"), inner=argparse.Namespace(a=1))
    return saved(place, {"model": weights(), "args": given})


@row("torch.export archive (`.pt2`)")
def pt2(place: Path) -> list[Arguments]:
    pixels = torch.zeros(2, 3, files.SIDE, files.SIDE, dtype=torch.uint8)
    program = torch.export.export(PixelInputModel(files.suspect(), files.spec()).eval(), (pixels,))
    torch.export.save(program, place / "w.pt2")
    return [[f"--checkpoint={place / 'w.pt2'}", *KNOWN]]


@row("model folder of this project")
def own_folder(place: Path) -> list[Arguments]:
    store.save(place / "ours", files.suspect(), files.spec())
    return [[f"--checkpoint={place / 'ours'}", "--data=clean.npz"]]


def with_norm(scale: float = 1.0, names: tuple[str, str, str] = ("0.mean", "0.std", "1.")) -> dict[str, Tensor]:
    shape = (1, 3, 1, 1) if names[0] == "0.mean" else (3,)
    layer = {name: torch.tensor(v).view(shape) * scale for name, v in zip(names, (files.MEAN, files.STD), strict=False)}
    return layer | {names[2] + key: value for key, value in weights().items()}


@row("a normalisation layer inside the model")
def norm_inside(place: Path) -> list[Arguments]:
    images, found = [*MODEL, "--data=clean.npz"], []
    found += saved(place, with_norm(), "a.pt", images)
    found += saved(place, with_norm(names=("normalize.mean", "normalize.std", "model.")), "b.pt", images)
    found += saved(place, with_norm(names=("mean", "std", "")), "c.pt", images)
    found += saved(place, with_norm(255.0), "d.pt", images)
    return found + saved(place, with_norm(), "e.pt", KNOWN)  # the same normalisation by name is no contradiction


@row(
    "a normalisation layer inside, and another given",
    r"normalises its images itself, by mean \(0\.4914, .* and (dataset=gtsrb with mean|mean=)",
)
def norm_twice(place: Path) -> list[Arguments]:
    [one] = saved(place, with_norm(), known=[*MODEL, "--data=clean.npz"])
    return [[*one, "--dataset=gtsrb"], [*one, "--mean=0.5,0.5,0.5", "--std=0.5,0.5,0.5"]]


@row("ResNet-20, 32, 44, 56, 110 of the CIFAR kind (akamaster's)")
def cifar_resnets(place: Path) -> list[Arguments]:
    found = []
    for depth in (20, 32, 44, 56, 110):
        model, images, labels = tuned(f"resnet{depth}", side=8)
        content = {f"module.{k}": v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
        part = place / str(depth)
        part.mkdir()
        known = [*own_images(part, images, labels), f"--model=resnet{depth}"]
        found += saved(part, {"state_dict": content, "best_prec1": 0.9}, known=known)
    return found


@row("torchvision's ResNet with a 3 × 3 stem")
def small_stem(place: Path) -> list[Arguments]:
    model, images, labels = tuned("resnet18_cifar")
    known = own_images(place, images, labels)
    return [*saved(place, model.state_dict(), known=[*known, "--model=resnet18"]),
            *saved(place, model.state_dict(), known=known)]  # fmt: skip


@row("a name with two architectures that the images tell apart")
def told_apart(place: Path) -> list[Arguments]:
    found = []
    for name in ("torchvision/mobilenet_v2", "mobilenet_v2"):
        part = place / name.replace("/", "_")
        part.mkdir()
        model, images, labels = tuned(name)
        found += saved(part, model.state_dict(), known=[*own_images(part, images, labels), "--model=mobilenet_v2"])
    return found


@row(
    "a name with two architectures that the images do not tell apart",
    r"do not tell which it is: give model=\S+ or model=\S+",
)
def not_told_apart(place: Path) -> list[Arguments]:
    model, images, _ = tuned("torchvision/mobilenet_v2")
    return saved(
        place, model.state_dict(), known=[*own_images(place, images, np.arange(160) % 4), "--model=mobilenet_v2"]
    )


@row("no `model`, one architecture fits")
def unnamed(place: Path) -> list[Arguments]:
    return saved(place, weights(), known=IMAGES)


@row("no `model`, none fits", r"fit no architecture known here: nearest is preactresnet18 \(.*extra\.weight")
def unknown(place: Path) -> list[Arguments]:
    return saved(place, weights() | {"extra.weight": torch.zeros(3)}, known=IMAGES)


@row("a model of one channel with an image folder")
def one_channel(place: Path) -> list[Arguments]:
    model, images, labels = tuned("preactresnet18", channels=1)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        (place / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).convert("RGB").save(place / "images" / str(label) / f"{k}.png")
    given = [f"--mean={files.MEAN[0]}", f"--std={files.STD[0]}"]
    return saved(place, model.state_dict(), known=[*MODEL, f"--data={place / 'images'}", *given])


@row("weights of another architecture", r"(no linear\.weight|are not preactresnet18's).*they fit small/resnet18")
def other(place: Path) -> list[Arguments]:
    return saved(place, files.network(architecture="resnet18").state_dict())


@row("weights with NaN or infinity", r"linear\.bias holds NaN or infinity")
def not_finite(place: Path) -> list[Arguments]:
    return saved(place, weights() | {"linear.bias": torch.full((4,), torch.nan)})


@row("an architecture without BatchNorm")
def no_batchnorm(place: Path) -> list[Arguments]:
    model, images, labels = tuned("convnext_mini", 32)
    return saved(place, model.state_dict(), known=[*own_images(place, images, labels), "--model=convnext_mini"])


@row("an architecture in which nothing can be masked", r"has no neurons to prune: no BatchNorm .* no attention")
def nothing_to_mask(place: Path) -> list[Arguments]:
    model, images, labels = build("timm/test_nfnet", 4, 3), *files.clean_images(40, 1)
    images = np.kron(images, np.ones((1, 4, 4, 1), np.uint8))
    return saved(place, model.state_dict(), known=[*own_images(place, images, labels), "--model=timm/test_nfnet"])


@row("whole pickled model (`torch.save(model)`)", r"would have to run \S+ .*torch\.save\(model\.state_dict\(\), FILE\)")
def pickled(place: Path) -> list[Arguments]:
    legacy = saved(place, files.suspect(), "old.pt", _use_new_zipfile_serialization=False)
    return [*saved(place, files.suspect()), *legacy]


@row("TorchScript", r"TorchScript archive .*contains code, which is never run here")
def torchscript(place: Path) -> list[Arguments]:
    torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)).save(place / "w.pt")
    shutil.copy(place / "w.pt", place / "packed.pt")
    files.deflated(place / "packed.pt")
    return [[f"--checkpoint={place / name}", *KNOWN] for name in ("w.pt", "packed.pt")]


@row("plain pickle", r"plain Python pickle.*state_dict")
def plain_pickle(place: Path) -> list[Arguments]:
    return [each for k in (2, 4, 5) for each in written(place, pickle.dumps({"w": [1.0]}, protocol=k), f"{k}.pkl")]


@row("ONNX", r"ONNX graph, not PyTorch weights")
def onnx(place: Path) -> list[Arguments]:
    return written(place, b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x90\x01" + bytes(200), "w.onnx")


@row("HDF5 or Keras", r"only PyTorch models are taken")
def hdf5(place: Path) -> list[Arguments]:
    with zipfile.ZipFile(place / "w.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF")
    keras = [f"--checkpoint={place / 'w.keras'}", *KNOWN]
    return [keras, *written(place, b"\x89HDF\r\n\x1a\n" + bytes(200), "w.h5")]


@row("git-lfs pointer", r"run `git lfs pull`")
def lfs(place: Path) -> list[Arguments]:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    return [*written(place, pointer), *written(place, pointer, "w.safetensors")]


@row("web page saved in its place", r"web page \(HTML\).*the download gave a page")
def page(place: Path) -> list[Arguments]:
    return written(place, b"\n<!DOCTYPE html><html><body>Sign in</body></html>")


@row(
    "text, JSON, XML, Python source or zero bytes", r"is plain text|is JSON|is an XML|is Python source|only zero bytes"
)
def messages(place: Path) -> list[Arguments]:
    contents = (b"Repository not found", b'{"error": "denied"}', b"<?xml version='1.0'?><Error/>", b"import torch\n",
                bytes(2000))  # fmt: skip
    return [each for k, content in enumerate(contents) for each in written(place, content, f"{k}.pt")]


@row("MessagePack (Flax) or MATLAB", r"is a MessagePack file|is a MATLAB file")
def other_tools(place: Path) -> list[Arguments]:
    packed = b"\x82\xa6params\x81\xa5conv1\xc4\x04" + bytes(9)
    return [*written(place, packed, "w.msgpack"), *written(place, b"MATLAB 5.0 MAT-file".ljust(200), "w.mat")]


@row("keys beside the net (`net.*` and `criterion.weight`)", r"start with 'net\.', these do not: 'criterion\.weight'")
def keys_beside(place: Path) -> list[Arguments]:
    net = {f"net.{key}": value for key, value in weights().items()}
    return saved(place, {"state_dict": net | {"criterion.weight": torch.zeros(4)}})


@row(
    "state dicts under other names (`teacher` and `student`)", r"\['student'\]: save .* alone|holds a state dict under"
)
def other_names(place: Path) -> list[Arguments]:
    both = {"teacher": weights(), "student": weights()}
    return [*saved(place, both), *saved(place, {"checkpoint": {"state_dict": weights()}}, "b.pt")]


@row(
    "a normalisation layer with `mean` and `std` on different scales", r"0\.mean .* and 0\.std .* contradict each other"
)
def norm_of_two_scales(place: Path) -> list[Arguments]:
    inverse = {"0.std": 1 / with_norm()["0.std"]}
    return saved(place, with_norm() | inverse, known=[*MODEL, "--data=clean.npz"])


@row("gzip, tar, zip", r"unpack it")
def packed(place: Path) -> list[Arguments]:
    torch.save(weights(), place / "w.pt")
    with tarfile.open(place / "w.tar", "w") as archive:
        archive.add(place / "w.pt", "w.pt")
    with zipfile.ZipFile(place / "w.zip", "w", zipfile.ZIP_DEFLATED) as folder:
        folder.write(place / "w.pt", "w.pt")
    names = [[f"--checkpoint={place / name}", *KNOWN] for name in ("w.tar", "w.zip")]
    return [*names, *written(place, gzip.compress((place / "w.pt").read_bytes()), "w.pt.gz")]


@row("npz", r"holds images, not weights")
def npz(place: Path) -> list[Arguments]:
    return [[f"--checkpoint={files.clean_npz(place / 'w.npz')}", *KNOWN]]


@row("empty or truncated file", r"is empty|is truncated")
def broken(place: Path) -> list[Arguments]:
    torch.save(weights(), place / "whole.pt")
    return [*written(place, b"", "empty.pt"), *written(place, (place / "whole.pt").read_bytes()[:5000])]


def result(place: Path, **changes: Any) -> Arguments:
    place.mkdir(exist_ok=True)
    return [f"--attack_result={files.attack_result(place, **changes)}", "--data=clean.npz"]


@row("`attack_result.pt`")
def attack_result(place: Path) -> list[Arguments]:
    return [result(place)]


@row("`poison_indicator` as list, bool, float32 or uint8, or absent")
def indicators(place: Path) -> list[Arguments]:
    marks = [0.0] * 5 + [1.0] + [0.0] * 4
    ways = [marks, *(np.array(marks, dtype=kind) for kind in (bool, "float32", "uint8")), torch.tensor(marks), None]
    found = [{} if way is None else {"poison_indicator": way} for way in ways]
    return [result(place / str(k), bd_train=way | {"getitem_all": True}) for k, way in enumerate(found)]


def relabelled(place: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Arguments:
    """The triggered images' entries, each changed."""
    (place / "plain").mkdir(parents=True)
    file = files.attack_result(place)
    items = {}
    for k, label in enumerate(files.clean_images(24, 3)[1]):
        if label:
            path = f"./record/elsewhere/bd_test_dataset/{label}/{k}.png"
            items[k] = change({"path": path, "other_info": [0, int(label)]})
    files.attack_result(place, bd_test={"bd_data_container": {"data_dict": items}})
    return [f"--attack_result={file}", "--data=clean.npz"]


@row("labels as int32, uint8 or plain numbers")
def label_types(place: Path) -> list[Arguments]:
    kinds: list[Callable[[list[int]], Any]] = [
        lambda v: [np.int32(v[0]), np.int32(v[1])],
        lambda v: [np.uint8(v[0]), np.uint8(v[1])],
        lambda v: v,
        lambda v: np.array(v, dtype=np.int32),
    ]

    def to(kind: Callable[[list[int]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda item: item | {"other_info": kind(item["other_info"])}

    return [relabelled(place / str(k), to(kind)) for k, kind in enumerate(kinds)]


@row("paths with Windows' backslashes")
def backslashes(place: Path) -> list[Arguments]:
    drive = "C:\\bench\\"
    return [
        relabelled(place / "a", lambda item: item | {"path": item["path"].replace("/", "\\")}),
        relabelled(place / "b", lambda item: item | {"path": drive + item["path"][2:].replace("/", "\\")}),
    ]


@row("`img_size` as list or one number")
def sizes(place: Path) -> list[Arguments]:
    ways = ([8, 8, 3], 8, np.array([8, 8, 3]), [np.int32(8), np.int32(8), np.int32(3)])
    return [result(place / str(k), img_size=way) for k, way in enumerate(ways)]


def defense(place: Path, name: str = "preactresnet18", model: nn.Module | None = None) -> Path:
    content = {"model_name": name, "num_classes": 4, "model": dict(model.state_dict()) if model else weights()}
    torch.save(content, place / "defense_result.pt")
    return place / "defense_result.pt"


@row("`defense_result.pt` as `attack_result`")
def defense_as_attack(place: Path) -> list[Arguments]:
    return [[f"--attack_result={defense(place)}", *IMAGES]]


@row("`defense_result.pt` as `checkpoint`, without `model`")
def defense_as_checkpoint(place: Path) -> list[Arguments]:
    return [[f"--checkpoint={defense(place)}", *IMAGES]]


@row("`attack_result.pt` of `mobilenet_v2` or `resnet18`")
def torchvisions(place: Path) -> list[Arguments]:
    found = []
    for name in ("mobilenet_v2", "resnet18"):
        (place / name).mkdir()
        model, images, labels = tuned(f"torchvision/{name}")
        found.append(
            [f"--attack_result={defense(place / name, name, model)}", *own_images(place / name, images, labels)]
        )
    return found


@row("`attack_result.pt` of `vit_b_16`, `convnext_tiny`, `vgg19` …")
def no_norm_results(place: Path) -> list[Arguments]:
    model, images, labels = tuned("convnext_tiny", 32)
    return [[f"--attack_result={defense(place, 'convnext_tiny', model)}", *own_images(place, images, labels)]]


@row("`attack_result.pt` whose weights are another architecture's", r"they fit preactresnet18: give model=preact")
def other_result(place: Path) -> list[Arguments]:
    return [result(place, model_name="resnet18")]


@row("`poison_indicator` of indices, or with other values than 0 and 1")
def odd_indicator(place: Path) -> list[Arguments]:
    ways: list[Any] = [[5, 9], [0.0, float("nan")]]
    return [result(place / str(k), bd_train={"poison_indicator": way}) for k, way in enumerate(ways)]


@row("`img_size` with two different sides", r"img_size \(8, 16, 3\) is not square")
def odd_size(place: Path) -> list[Arguments]:
    return [result(place, img_size=(8, 16, 3))]


@row("labels that are not whole numbers", r"a label in other_info is '0\.5', not a whole number")
def odd_labels(place: Path) -> list[Arguments]:
    return [relabelled(place, lambda item: item | {"other_info": [0.5, 1]})]


@row(
    "`attack_result.pt` with another `model_name`",
    r"model_name 'my_net' is not one of BackdoorBench's .*: give model=NAME",
)
def odd_name(place: Path) -> list[Arguments]:
    return [result(place, model_name="my_net")]
