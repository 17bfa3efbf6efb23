"""What an unlearn run found out, read for the steps after it."""

import torch

from rnp_mlflow.artifacts import detection, table
from rnp_mlflow.core.proxy import Proxy
from rnp_mlflow.core.verdict import Verdict
from rnp_mlflow.tracking import lineage


def verdict(unlearn_run_id: str) -> Verdict | None:
    """Read the verdict of an unlearn run; None if it left none."""
    if not lineage.left(unlearn_run_id, table.VERDICT):
        return None
    return detection.read_verdict(lineage.fetch(unlearn_run_id, table.VERDICT))


def proxy(unlearn_run_id: str, device: torch.device) -> Proxy | None:
    """Read the proxy of an unlearn run; None if it left none."""
    if not lineage.left(unlearn_run_id, table.PROXY):
        return None
    return detection.read_proxy(lineage.fetch(unlearn_run_id, table.PROXY), device)
