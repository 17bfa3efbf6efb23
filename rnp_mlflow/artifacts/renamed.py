"""Former names of metrics and of entries of json artifacts, for runs that were stored under them."""

import re
from collections.abc import Mapping
from typing import Any

# former → present, in `verdict.json`, in summary.json's `verdict`, and as metric `verdict/…`
DETECTION = {
    "score": "target_share",
    "size": "relative_norm",
    "cost": "removal_cost",
    "faded": "forgetting_rate",
    "doubt": "benign_score",
    "max_doubt": "benign_threshold",
}
METRICS = {f"verdict/{former}": f"verdict/{now}" for former, now in DETECTION.items()}

# metrics of `progress.csv`, and the chart made from it: earlier runs have none, or over other steps
MEASURED_AT_MOMENTS = re.compile(r"unlearn/rule_accuracy|(unlearn|recover)/test_\w+|rnp/\w+")
# metrics that runs no longer log: what they say is in artifacts that are compared
NO_LONGER_LOGGED = re.compile(
    r"(chosen|fixed|oracle)/.*|curve/at|proxy_asr(_before)?|attack/(poisoned|covers)|recover/(neurons|below_half)"
    r"|unlearn/(steps|stop_accuracy)|verdict/(target|proxy_asr|proxy_norm|relative_norm|removal_cost)"
)


def detection_entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries under their present names."""
    return {DETECTION.get(name, name): value for name, value in content.items()}
