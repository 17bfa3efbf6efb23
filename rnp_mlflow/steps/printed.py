"""What a prune run prints: its table, the verdict, and what the figures were measured on."""

from rich.console import Console
from rich.table import Table

from rnp_mlflow.core.selectors import SELECTORS
from rnp_mlflow.core.verdict import FORGETTING_OFFSET
from rnp_mlflow.steps.summary import DetectionSummary, PruneSummary
from rnp_mlflow.tracking import ui
from rnp_mlflow.tracking.runs import StepRun

MEANING = {
    "fixed": "at pruning_number",
    "oracle": "best DER in hindsight, sees the trigger",
}


def print_report(run: StepRun, summary: PruneSummary) -> None:
    """Print the result as a table on standard output, its footnotes, and links."""
    report = Table(title=f"prune run {run.run_id}", title_justify="left")
    for column in ("point", summary.pruning_by, "neurons", "held-out ACC", "proxy", "ACC", "ASR", "RA", "DER"):
        report.add_column(column, justify="left" if column == "point" else "right")
    before = summary.before
    cells = (before.holdout_acc, before.proxy_asr, before.acc, before.asr, before.ra)
    report.add_row("before", "", "0", *(fmt(value) for value in cells), "")
    for name, point in summary.points.items():
        mark = " ◀ purified" if name == summary.selected else ""
        cutoff = "none" if point.cutoff is None else f"{point.cutoff:g}"
        cells = (point.holdout_acc, point.proxy_asr, point.acc, point.asr, point.ra)
        measured = (fmt(value) for value in (*cells, point.der))
        report.add_row(f"{name}{mark}", cutoff, str(point.num_pruned), *measured)
    console = Console(width=110)
    console.print(report)
    for name in summary.points:
        console.print(f"  {name}: {MEANING.get(name) or rule(summary)}", highlight=False)
    for line in (*footnotes(summary), *ui.ui_links(run.experiment_id, [run.run_id])):
        console.print(line, highlight=False, soft_wrap=True)


def rule(summary: PruneSummary) -> str:
    """Say what chose the point `chosen`, which sees no trigger."""
    selector = SELECTORS[summary.select_by]
    if summary.select_by != "proxy" and selector.trigger_free:
        return f"without trigger, {selector.prunes_at}"
    if summary.verdict and summary.verdict.backdoor_suspected is False:
        return "without trigger, nothing: no sign of a backdoor"
    if summary.before.proxy_asr:
        return "without trigger, by the proxy"
    return "without trigger, as far as held-out accuracy allows: there is no proxy"


def footnotes(summary: PruneSummary) -> list[str]:
    """Say what the verdict is, what the figures were measured on, and which layers lost neurons."""
    counts, most = summary.images, summary.curve_eval_size
    triggered = f"; ASR, RA: {counts.triggered} triggered ones" if counts.triggered else ""
    fewer = 0 < most < max(counts.test or counts.held_out, counts.triggered)
    part = f"; the curve: at most {most} of each" if fewer else ""
    lost = ", ".join(f"{layer} {n} of {of}" for layer, (n, of) in summary.layers.items())
    return [
        *verdict_lines(summary),
        *holdout_lines(summary),
        f"  ACC: {test_images(summary)}{triggered}{part}",
        f"  pruned: {lost or 'nothing'}",
    ]


def holdout_lines(summary: PruneSummary) -> list[str]:
    """Say what held-out accuracy and the proxy's success rate were measured on."""
    counts, views = summary.images, summary.views
    ways = " and ".join(way for way, used in (("cropped", views.cropped), ("mirrored", views.mirrored)) if used)
    times = "once" if views.each == 1 else f"{views.each} times"
    how = f"each {times}, {ways} at random" if views.each and ways else "as they are"
    some = f"{views.images} of the " if views.images < counts.held_out else ""
    lines = [f"  held-out ACC: {some}{counts.held_out} of {counts.clean} clean images, {how}"]
    if summary.before.proxy_asr is None:
        return lines
    to = f" to {summary.verdict.target!r}" if summary.verdict else ""
    return [f"  proxy: share of the other classes' held-out images that a stand-in for the trigger turns{to}", *lines]


def test_images(summary: PruneSummary) -> str:
    """Say what ACC in the table was measured on."""
    counts = summary.images
    if counts.test:
        return f"{counts.test} test images"
    which = "the same" if summary.views.images == counts.held_out else "all"
    return f"{which} {counts.held_out} as they are; there is no test part"


def verdict_lines(summary: PruneSummary) -> list[str]:
    """Say the verdict, and how the benign score came about; nothing if there is no verdict."""
    verdict = summary.verdict
    if verdict is None:
        return []
    target = repr(verdict.target)
    share = f"the unlearned model classifies {verdict.target_share:.0%} of other images as {target}"
    if verdict.benign_score is None:
        return [f"  verdict: none without a proxy; if there is a backdoor, its target is {target} ({share})"]
    score, limit = f"benign score {verdict.benign_score:.4f}", f"benign_threshold={verdict.benign_threshold:g}"
    why = f"  benign score: {statistics(verdict, bool(summary.before.proxy_asr))}; {share}"
    if verdict.backdoor_suspected:
        return [f"  verdict: a backdoor to {target} is suspected ({score} ≤ {limit})", why]
    consequence = ", so nothing is pruned" if summary.select_by == "proxy" else ""
    return [f"  verdict: no sign of a backdoor ({score} > {limit}){consequence}", why]


def statistics(verdict: DetectionSummary, proxy_works: bool) -> str:
    """Return the product that the benign score is, in words. Without a proxy that works, nothing was measured."""
    measured = "the proxy flips no held-out image, which counts as norm 1 × removal cost 1"
    if proxy_works:
        measured = f"relative norm of the proxy {verdict.relative_norm:.3f} × removal cost {verdict.removal_cost:.2f}"
    return f"{measured} × ({FORGETTING_OFFSET:g} + forgetting rate {verdict.forgetting_rate:.2f})"


def fmt(value: float | None) -> str:
    """Format a share for the table."""
    return "unknown" if value is None else f"{value:.4f}"
