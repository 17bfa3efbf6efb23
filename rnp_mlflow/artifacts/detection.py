"""`verdict.json` and `proxy.safetensors`: what unlearning revealed."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rnp_mlflow.artifacts.renamed import detection_entries
from rnp_mlflow.artifacts.stored import as_type, read_json
from rnp_mlflow.artifacts.table import PROXY, VERDICT
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.verdict import TargetEstimate


def write_estimate(folder: Path, estimate: TargetEstimate) -> None:
    """Write the suspected target class and its statistics."""
    (folder / VERDICT).write_text(json.dumps(asdict(estimate)) + "\n")


def read_estimate(file: Path) -> TargetEstimate:
    """Read the suspected target class and its statistics."""
    return as_type(TargetEstimate, detection_entries(read_json(file)), file)


def write_proxy(folder: Path, proxy: ProxyTrigger) -> None:
    """Write the proxy trigger, in the model's input space."""
    tensors = {"change": proxy.delta, "low": proxy.low, "high": proxy.high}  # the file's names, kept
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    save_file(contiguous | {"target": torch.tensor(proxy.target)}, folder / PROXY)


def read_proxy(file: Path, device: torch.device) -> ProxyTrigger:
    """Read the proxy trigger, onto the device."""
    tensors = load_file(file, str(device))
    return ProxyTrigger(int(tensors["target"]), tensors["change"], tensors["low"], tensors["high"])
