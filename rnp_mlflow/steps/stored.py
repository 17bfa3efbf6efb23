"""What an unlearn run detected, read for the steps after it."""

import torch

from rnp_mlflow.artifacts import detection, table
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.verdict import TargetEstimate
from rnp_mlflow.tracking import lineage


def load_estimate(unlearn_run_id: str) -> TargetEstimate | None:
    """Read the target estimate of an unlearn run; None if it left none."""
    if not lineage.has_artifact(unlearn_run_id, table.VERDICT):
        return None
    return detection.read_estimate(lineage.fetch(unlearn_run_id, table.VERDICT))


def load_proxy(unlearn_run_id: str, device: torch.device) -> ProxyTrigger | None:
    """Read the proxy of an unlearn run; None if it left none."""
    if not lineage.has_artifact(unlearn_run_id, table.PROXY):
        return None
    return detection.read_proxy(lineage.fetch(unlearn_run_id, table.PROXY), device)


def load_detected(unlearn_run_id: str, device: torch.device) -> tuple[TargetEstimate | None, ProxyTrigger | None]:
    """Read both."""
    return load_estimate(unlearn_run_id), load_proxy(unlearn_run_id, device)
