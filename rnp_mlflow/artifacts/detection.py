"""`verdict.json` and `proxy.safetensors`: what unlearning betrayed."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from rnp_mlflow.artifacts.table import PROXY, VERDICT
from rnp_mlflow.core.proxy import Proxy
from rnp_mlflow.core.verdict import Verdict


def write_verdict(folder: Path, verdict: Verdict) -> None:
    """Write the suspected class and what speaks for it."""
    (folder / VERDICT).write_text(json.dumps(asdict(verdict)) + "\n")


def read_verdict(file: Path) -> Verdict:
    """Read the suspected class and what speaks for it."""
    return TypeAdapter(Verdict).validate_json(file.read_text())


def write_proxy(folder: Path, proxy: Proxy) -> None:
    """Write the stand-in for the trigger, in the model's input space."""
    tensors = {name: value.cpu().contiguous() for name, value in vars(proxy).items() if name != "target"}
    save_file(tensors | {"target": torch.tensor(proxy.target)}, folder / PROXY)


def read_proxy(file: Path, device: torch.device) -> Proxy:
    """Read the stand-in for the trigger, onto the device."""
    tensors = load_file(file, str(device))
    return Proxy(int(tensors.pop("target")), **tensors)
