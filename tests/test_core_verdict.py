"""How sure a verdict is, and how often a clean model would get it."""

import json
import math
from pathlib import Path
from statistics import NormalDist

import pytest

from rnp_mlflow.core.params import SweepParams
from rnp_mlflow.core.verdict import CLEAN_SCORES, NORM_FREE_CLEAN_SCORES, confidence, false_alarm_rate

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def scores(file: str = "clean_scores.json") -> list[float]:
    return [row["score"] for row in json.loads((BENCHMARKS / file).read_text())]


def test_the_limits_divide_the_scores_and_belong_to_the_surer_side() -> None:
    found = [confidence(score, 0.0025, 0.007) for score in (0.0, 0.0025, 0.0026, 0.007, 0.0071, 1.0)]
    assert found == ["clear", "clear", "borderline", "borderline", "no sign", "no sign"]


@pytest.mark.parametrize(
    ("file", "used"), [("clean_scores.json", CLEAN_SCORES), ("clean_scores_norm_free.json", NORM_FREE_CLEAN_SCORES)]
)
def test_the_null_distribution_is_that_of_the_clean_models_on_record(file: str, used: NormalDist) -> None:
    fitted = NormalDist.from_samples([math.log(score) for score in scores(file)])
    assert used.mean == pytest.approx(fitted.mean, abs=1e-4)
    assert used.stdev == pytest.approx(fitted.stdev, abs=1e-4)


def test_the_rate_is_near_what_was_counted_and_the_limits_have_the_rates_that_the_docs_say() -> None:
    """Against the share of the clean models on record that score as low."""
    known = scores()
    for score in (0.01, 0.02, 0.03, 0.05):
        counted = sum(each <= score for each in known) / len(known)
        assert false_alarm_rate(score) == pytest.approx(counted, abs=0.15)
    assert false_alarm_rate(0.0) == 0.0
    assert false_alarm_rate(SweepParams().clear_threshold) == pytest.approx(0.01, abs=0.002)
    assert false_alarm_rate(SweepParams().benign_threshold) == pytest.approx(0.05, abs=0.01)
