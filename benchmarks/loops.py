"""What the phases are held against: plain loops of the same network, and the reference's way of doing the same."""

import copy
import ctypes
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from rnp_mlflow.core.evaluate import batch_for
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import Mask, masked_parameters, ones_mask
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.precision import forward_fn, functional_logits
from rnp_mlflow.data.preprocess import Preprocess


@dataclass(frozen=True)
class Work:
    """What is timed: network, clean images (uint8), test images and labels, mask, transform, number of sweep points."""

    model: nn.Module
    clean: LabeledImages
    test: Tensor
    test_labels: Tensor
    mask: Mask
    transform: Preprocess
    points: int
    precision: Precision

    @property
    def images(self) -> Tensor:
        return self.clean.images

    @property
    def labels(self) -> Tensor:
        return self.clean.labels

    def draws(self) -> Generator:
        return Generator().manual_seed(0)


def forward_loop(work: Work) -> int:
    """The ceiling of evaluation: ready inputs through the network, and nothing else."""
    inputs = work.transform(work.test, None).split(batch_for(work.test, work.test.device))
    with torch.inference_mode(), forward_fn(work.model, work.precision) as forward:
        for part in inputs:
            forward(part)
    return len(work.test)


def backward_loop(work: Work) -> int:
    """The ceiling of recovery: ready batches of 32 forwards, and backwards to the mask; no step, no count."""
    working = copy.deepcopy(work.model).requires_grad_(False).train()
    mask = {name: values.requires_grad_() for name, values in ones_mask(working).items()}
    inputs = work.transform(work.images, None)
    with forward_fn(working, work.precision) as forward:
        for part, labels in zip(inputs.split(32), work.labels.split(32), strict=True):
            loss = cross_entropy(forward(part, masked_parameters(working, mask)), labels)
            torch.autograd.grad(loss, list(mask.values()))
    return len(work.images)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as PNG files in memory, decoded one by one with PIL, as the reference's loaders do from disk."""

    def __init__(self, images: Tensor, labels: Tensor, change: transforms.Compose):
        self.files, self.labels, self.change = [], labels.tolist(), change
        for image in images.cpu():
            file = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(Image.open(io.BytesIO(self.files[index])).convert("RGB")), self.labels[index]


def plain_evaluation(work: Work) -> int:
    """The reference's way: PIL, a loader, fp32, NCHW, batches of 256."""
    ready = transforms.Compose([transforms.ToTensor(), transforms.Normalize(work.transform.mean, work.transform.std)])
    loader = DataLoader(Pictures(work.test, work.test_labels, ready), 256)
    right = 0
    with torch.no_grad():
        for inputs, labels in loader:
            right += int((work.model(inputs.to(work.test.device)).argmax(1).cpu() == labels).sum())
    return len(work.test)


def plain_batches(work: Work) -> DataLoader[Any]:
    """The reference's way: PIL and augmentation image by image, batches of 128."""
    side = work.images.shape[-1]
    change = transforms.Compose([
        transforms.RandomCrop(side, work.transform.crop), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(work.transform.mean, work.transform.std),
    ])  # fmt: skip
    return DataLoader(Pictures(work.images, work.labels, change), 128, shuffle=True)


def plain_unlearning(work: Work) -> int:
    """The reference's way: fp32, NCHW, ascent on all weights."""
    working = copy.deepcopy(work.model).train()
    optimizer = torch.optim.SGD(working.parameters(), 0.01, 0.9, weight_decay=5e-4)
    for inputs, labels in plain_batches(work):
        optimizer.zero_grad()
        (-cross_entropy(working(inputs.to(work.images.device)), labels.to(work.images.device))).backward()
        optimizer.step()
    return len(work.images)


def plain_recovery(work: Work) -> int:
    """The reference's way: fp32, NCHW, gradients of every weight and of the mask, which alone is stepped."""
    working = copy.deepcopy(work.model).train()
    mask = {name: values.requires_grad_() for name, values in ones_mask(working).items()}
    optimizer = torch.optim.SGD(mask.values(), 0.2, 0.9)
    for inputs, labels in plain_batches(work):
        logits = functional_logits(working, inputs.to(work.images.device), masked_parameters(working, mask))
        optimizer.zero_grad()
        (0.2 * cross_entropy(logits, labels.to(work.images.device))).backward()
        optimizer.step()
        with torch.no_grad():
            for values in mask.values():
                values.clamp_(0, 1)
    return len(work.images)


def reset_peak(device: torch.device) -> None:
    """Start counting peak memory anew (Linux: /proc; CUDA: its allocator)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        # What an earlier phase has freed is not this one's.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    """Return the peak memory in MiB of this process, or of that GPU, since `reset_peak`; 0 if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
