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
    "fixed": "at pruning_number",
    "oracle": "best DER in hindsight, sees the trigger",
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
    marked = {"selected": summary["selected"], "at": picked[axis], "pruned": picked["pruned"]}
    figures.curve_png(run.folder / table.CURVE_PNG, lines, axis, marked, title)
    figures.curve_html(run.folder / table.CURVE_HTML, lines, axis, marked, title)
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
        console.print(f"  {name}: {MEANING.get(name) or rule(summary)}", highlight=False)
    for line in (*evidence(summary), *ui.where(run.experiment_id, [run.run_id])):
        console.print(line, highlight=False, soft_wrap=True)


def rule(summary: dict[str, Any]) -> str:
    """What chose the point `chosen`, which sees no trigger."""
    if summary["select_by"] == "clean_acc":
        return "without trigger, as far as held-out accuracy allows"
    if summary["verdict"] and summary["verdict"]["backdoor_suspected"] is False:
        return "without trigger, nothing: no sign of a backdoor"
    if summary["before"]["proxy_asr"]:
        return "without trigger, by the proxy"
    return "without trigger, as far as held-out accuracy allows: there is no proxy"


def evidence(summary: dict[str, Any]) -> list[str]:
    """What the figures were measured on, and which layers lost neurons."""
    counts, most = summary["images"], summary["curve_images"]
    triggered = f"; ASR, RA: {counts['triggered']} triggered ones" if counts["triggered"] else ""
    fewer = 0 < most < max(counts["test"] or counts["held_out"], counts["triggered"])
    part = f"; the curve: at most {most} of each" if fewer else ""
    lost = ", ".join(f"{layer} {n} of {of}" for layer, (n, of) in summary["layers"].items())
    return [
        *said(summary),
        *seen(summary),
        f"  ACC: {tested(summary)}{triggered}{part}",
        f"  pruned: {lost or 'nothing'}",
    ]


def seen(summary: dict[str, Any]) -> list[str]:
    """What held-out accuracy and the proxy's success were measured on."""
    counts, views = summary["images"], summary["views"]
    ways = " and ".join(way for way in ("cropped", "mirrored") if views[way])
    times = "once" if views["each"] == 1 else f"{views['each']} times"
    how = f"each {times}, {ways} at random" if views["each"] and ways else "as they are"
    some = f"{views['images']} of the " if views["images"] < counts["held_out"] else ""
    lines = [f"  held-out ACC: {some}{counts['held_out']} of {counts['clean']} clean images, {how}"]
    if summary["before"]["proxy_asr"] is None:
        return lines
    to = f" to {summary['verdict']['target']!r}" if summary["verdict"] else ""
    return [f"  proxy: share of the other classes' held-out images that a stand-in for the trigger turns{to}", *lines]


def tested(summary: dict[str, Any]) -> str:
    """What ACC in the table was measured on."""
    counts = summary["images"]
    if counts["test"]:
        return f"{counts['test']} test images"
    which = "the same" if summary["views"]["images"] == counts["held_out"] else "all"
    return f"{which} {counts['held_out']}, there is no test part (as they are)"


def measured_on(summary: dict[str, Any]) -> str:
    """What the curve was measured on: the words of its title."""
    counts = summary["images"]
    kind = "test" if counts["test"] else "held-out"
    some = [
        min(count, summary["curve_images"] or count) for count in (counts[kind.replace("-", "_")], counts["triggered"])
    ]
    return f"{some[0]} {kind} images" + (f", {some[1]} triggered" if some[1] else "")


def said(summary: dict[str, Any]) -> list[str]:
    """The verdict in one line; nothing where there is none."""
    verdict = summary["verdict"]
    if verdict is None:
        return []
    target = repr(verdict["target"])
    share = f"the unlearned model calls {verdict['score']:.0%} of other images {target}"
    if verdict["doubt"] is None:
        return [f"  verdict: none without a proxy; if there is a backdoor, then to {target} ({share})"]
    measured = f"size of the proxy {verdict['size']:.3f} × cost of stopping it {verdict['cost']:.2f}"
    if not summary["before"]["proxy_asr"]:  # then neither was measured
        measured = "the proxy turns no held-out image, which counts as size 1 × cost 1"
    why = f"{measured} × ({SURE:g} + {verdict['faded']:.2f} taken by unlearning) = {verdict['doubt']:.4f}"
    if verdict["backdoor_suspected"]:
        return [f"  verdict: a backdoor to {target} is suspected ({why} ≤ max_doubt={verdict['max_doubt']:g}; {share})"]
    consequence = ", so nothing is pruned" if summary["select_by"] == "proxy" else ""
    return [f"  verdict: no sign of a backdoor ({why} > max_doubt={verdict['max_doubt']:g}){consequence}"]


def shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
