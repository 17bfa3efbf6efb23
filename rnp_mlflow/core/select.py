"""Choosing the operating point of a pruning curve."""

from collections.abc import Sequence

from rnp_mlflow.core.evaluate import Scores, der


def by_clean_accuracy(val_acc: Sequence[float], acc_ratio: float) -> int:
    """Index of the last point before held-out clean accuracy first falls below `acc_ratio` × val_acc[0].

    val_acc: accuracy on held-out clean images at every point, the unpruned model first. No trigger
    is needed. Index 0 means: prune nothing.
    """
    floor = acc_ratio * val_acc[0]
    for index, value in enumerate(val_acc):
        if value < floor:
            return max(0, index - 1)
    return len(val_acc) - 1


def oracle(scores: Sequence[Scores]) -> int | None:
    """Index of the point with the highest DER (the first of equals), None where ASR is unknown.

    It looks at the test images and at the trigger: a bound for other choices, not a defence.
    """
    values = [der(scores[0], score) for score in scores]
    known = [value for value in values if value is not None]
    return values.index(max(known)) if known else None
