"""The pruning curve and its summary: as files, as metrics, and as words."""

import csv
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from rnp_mlflow.artifacts import table
from rnp_mlflow.core.curve import Point
from rnp_mlflow.core.verdict import SURE
from rnp_mlflow.tracking import figures, ui
from rnp_mlflow.tracking.runs import StepRun

MEANING = {
    "chosen": "without trigger",
    "fixed": "at pruning_number",
    "oracle": "best DER in hindsight, with the trigger",
}
FIGURES = ("acc", "asr", "ra", "der")


def values(point: Point, axis: str) -> dict[str, Any]:
    """The columns of pruning_curve.csv."""
    s = point.scores
    seen = {"val_acc": point.val_acc, "proxy_asr": point.proxy_asr}
    return {axis: point.at, "pruned": point.pruned, "acc": s.acc, "asr": s.asr, "ra": s.ra} | seen


def step_of(point: Point) -> int:
    """The integer step of its metrics: round(1000 × threshold), the number, or -1 if unpruned."""
    if point.at is None:
        return -1
    return round(1000 * point.at) if isinstance(point.at, float) else point.at


def write(run: StepRun, rows: list[Point], summary: dict[str, Any], title: str, model_id: str) -> None:
    """Curve as csv, png, html and metrics; summary as json and metrics, these linked to the logged model."""
    axis, picked = summary["pruning_by"], summary["points"][summary["selected"]]
    lines = [values(row, axis) for row in rows]
    with (run.folder / table.CURVE).open("w", newline="") as out:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    (run.folder / table.SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    chosen = {"at": picked[axis], "pruned": picked["pruned"]}
    figures.curve_png(run.folder / table.CURVE_PNG, lines, axis, chosen, title)
    figures.curve_html(run.folder / table.CURVE_HTML, lines, axis, chosen, title)
    log_curve(run, rows)
    log_figures(run, summary, model_id)


def log_curve(run: StepRun, rows: list[Point]) -> None:
    """`curve/…` metrics over integer steps; the threshold itself beside them."""
    history: list[tuple[str, float | None, int]] = []
    step = -2
    for row in rows:
        step = max(step + 1, step_of(row))  # a refined point may lie within a thousandth of another
        names = {"acc": row.scores.acc, "asr": row.scores.asr, "ra": row.scores.ra}
        names |= {"val_acc": row.val_acc, "proxy_asr": row.proxy_asr, "pruned": row.pruned, "at": row.at}
        history += [(f"curve/{name}", value, step) for name, value in names.items()]
    run.history(history)


def log_figures(run: StepRun, summary: dict[str, Any], model_id: str | None = None) -> None:
    """The figures before and at the selected point, under the names that others rely on."""
    picked = summary["points"][summary["selected"]]
    run.metrics({f"{name}_before": value for name, value in summary["before"].items()})
    run.metrics({name: picked[name] for name in (*FIGURES, "pruned", "val_acc", "proxy_asr")}, model_id=model_id)
    for name, point in summary["points"].items():
        run.metrics({f"{name}/{key}": point[key] for key in (*FIGURES, "pruned")})


def tell(run: StepRun, summary: dict[str, Any]) -> None:
    """The result as a table on standard output, the evidence, and where to look."""
    shape = Table(title=f"prune run {run.run_id}", title_justify="left")
    for column in ("point", summary["pruning_by"], "neurons", "held-out ACC", "proxy", "ACC", "ASR", "RA", "DER"):
        shape.add_column(column, justify="left" if column == "point" else "right")
    before = summary["before"]
    shape.add_row("before", "", "0", *(shown(before[key]) for key in ("val_acc", "proxy_asr", "acc", "asr", "ra")), "")
    for name, point in summary["points"].items():
        mark = " ◀ purified" if name == summary["selected"] else ""
        at = point[summary["pruning_by"]]
        cells = (shown(point[key]) for key in ("val_acc", "proxy_asr", *FIGURES))
        shape.add_row(f"{name}{mark}", "none" if at is None else f"{at:g}", str(point["pruned"]), *cells)
    console = Console(width=110)
    console.print(shape)
    for name in summary["points"]:
        console.print(f"  {name}: {MEANING[name]}", highlight=False)
    for line in (*evidence(summary), *ui.where(run.experiment_id, [run.run_id])):
        console.print(line, highlight=False, soft_wrap=True)


def evidence(summary: dict[str, Any]) -> list[str]:
    """What the figures were measured on, and which layers lost neurons."""
    counts = summary["images"]
    tested = (
        f"{counts['test']} test images" if counts["test"] else f"the same {counts['held_out']}, there is no test part"
    )
    triggered = f"; ASR, RA: {counts['triggered']} triggered ones" if counts["triggered"] else ""
    fewer = 0 < summary["curve_images"] < max(counts["test"], counts["triggered"])
    part = f"; the curve: at most {summary['curve_images']} of each" if fewer else ""
    lost = ", ".join(f"{layer} {n} of {of}" for layer, (n, of) in summary["layers"].items())
    proxy = "  proxy: share of held-out images that a stand-in for the trigger turns to the suspected class"
    return [
        *said(summary),
        *([] if summary["before"]["proxy_asr"] is None else [proxy]),
        f"  held-out ACC: random crops of {counts['held_out']} of {counts['clean']} clean images",
        f"  ACC: {tested}{triggered}{part}",
        f"  pruned: {lost or 'nothing'}",
    ]


def said(summary: dict[str, Any]) -> list[str]:
    """The verdict in one line; nothing where there is none."""
    verdict = summary["verdict"]
    if verdict is None:
        return []
    target = repr(verdict["target"])
    share = f"the unlearned model calls {verdict['score']:.0%} of other images {target}"
    if verdict["doubt"] is None:
        return [f"  verdict: none without a proxy; if there is a backdoor, then to {target} ({share})"]
    why = (
        f"size of the proxy {verdict['size']:.3f} × cost of stopping it {verdict['cost']:.2f} × ({SURE:g} + "
        f"{verdict['faded']:.2f} taken by unlearning) = {verdict['doubt']:.4f}"
    )
    if verdict["backdoor_suspected"]:
        return [f"  verdict: a backdoor to {target} is suspected ({why} ≤ max_doubt={verdict['max_doubt']:g}; {share})"]
    consequence = ", so nothing is pruned" if summary["select_by"] == "proxy" else ""
    return [f"  verdict: no sign of a backdoor ({why} > max_doubt={verdict['max_doubt']:g}){consequence}"]


def shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
