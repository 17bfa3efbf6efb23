"""What a prune run prints: its table, what a reader needs to read it, the verdict, and on request all details."""

from rnp_mlflow.core.selectors import SELECTORS
from rnp_mlflow.core.verdict import FORGETTING_OFFSET, NORM_FREE_FACTOR
from rnp_mlflow.steps.output import Result, wrap
from rnp_mlflow.steps.summary import REPAIRED, DetectionSummary, PointFigures, PruneSummary
from rnp_mlflow.tracking import ui
from rnp_mlflow.tracking.runs import StepRun

MEANING = {
    "fixed": "at pruning_number",
    "oracle": "best DER in hindsight, with the trigger",
    REPAIRED: "the pruned model, after it has learned the suspect's answers to clean images again",
}
MARK = "◀"


def result(run: StepRun, summary: PruneSummary) -> Result:
    """Return what the run concludes: for a program, in a few lines, and as a report with links."""

    def lines(width: int, verbose: bool) -> list[str]:
        links = ui.ui_links(run.experiment_id, [run.run_id])
        return [f"prune run {run.run_id}", *report(summary, width, verbose), *links]

    return Result(content(summary), brief(summary), lines)


def content(summary: PruneSummary) -> dict[str, object]:
    """Return the object of `--json`: that of `summary.json`, and the figures at the point that the model is pruned at.

    They are under `after`, beside those under `before`.
    """
    found = summary.to_json()
    return {"before": found["before"], "after": found["points"][summary.selected], **found}


def brief(summary: PruneSummary) -> list[str]:
    """Return the verdict and what pruning changed: a line each."""
    before, after = summary.before, summary.picked
    figures = {"ACC": (before.acc, after.acc), "ASR": (before.asr, after.asr)}
    changes = [f"{name} {fmt(old)} → {fmt(new)}" for name, (old, new) in figures.items() if new is not None]
    return [
        f"  {verdict_line(summary)}",
        f"  {summary.selected}: {after.num_pruned} neurons pruned, {', '.join(changes)}",
    ]


def report(summary: PruneSummary, width: int, verbose: bool) -> list[str]:
    """Return the table, its notes and the verdict; if `verbose`, also what these come from. width: in columns."""
    notes = [f"  {verdict_line(summary)}", f"  {MARK}: the purified model"]
    notes += [f"  {name}: {meaning(name, summary)}" for name in summary.points]
    notes += [f"  n: {measured(summary)}"]
    notes += footnotes(summary) if verbose else []
    return [*table(summary), "", *(part for note in notes for part in wrap(note, width)), ""]


def table(summary: PruneSummary) -> list[str]:
    """Return a heading, a rule, and a row per operating point, the unpruned model first; below 80 columns wide."""
    by_number, proxy = summary.pruning_by == "number", summary.before.proxy_asr is not None
    columns = ["point", *([] if by_number else ["threshold"]), "neurons", "held-out", *(["proxy"] if proxy else [])]
    columns += ["ACC", "ASR", "RA", "DER"]

    def row(name: str, point: PointFigures, cutoff: str, rating: str) -> list[str]:
        cells = [name, *([] if by_number else [cutoff]), str(point.num_pruned), fmt(point.holdout_acc)]
        cells += [fmt(point.proxy_asr)] if proxy else []
        return [*cells, fmt(point.acc), fmt(point.asr), fmt(point.ra), rating]

    rows = [columns, row("before", summary.before, "", "")]
    for name, point in summary.points.items():
        cutoff = "none" if point.cutoff is None else f"{point.cutoff:.4g}"
        rows.append(row(f"{name} {MARK}" if name == summary.selected else name, point, cutoff, fmt(point.der)))
    widths = [max(len(cells[k]) for cells in rows) for k in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(cells, widths, strict=True)) for cells in rows)
    ]
    return [lines[0].rstrip(), "─" * len(lines[0]), *(line.rstrip() for line in lines[1:])]


def meaning(name: str, summary: PruneSummary) -> str:
    """Say what an operating point is."""
    sentence = MEANING.get(name) or rule(summary)
    if name == REPAIRED and summary.verdict and summary.verdict.repair_follows and summary.verdict.backdoor_suspected:
        sentence += ", and to the same images with the proxy"
    return sentence


def measured(summary: PruneSummary) -> str:
    """Say on how many images the columns of the table were measured."""
    counts, held_out = summary.images, summary.views.images
    acc = f"{counts.test} test images"
    if not counts.test:
        acc = f"the same {held_out}" if held_out == counts.held_out else f"all {counts.held_out} held-out images"
    triggered = f"{counts.triggered} triggered images" if counts.triggered else "unknown (no triggered images)"
    return f"held-out {held_out} images; ACC {acc}; ASR and RA {triggered}"


def rule(summary: PruneSummary) -> str:
    """Say what chose the point `chosen`, which sees no trigger."""
    selector = SELECTORS[summary.select_by]
    if summary.select_by != "proxy" and selector.trigger_free:
        return f"{selector.prunes_at}, without the trigger"
    if summary.verdict and summary.verdict.backdoor_suspected is False:
        return "no neurons, because there is no sign of a backdoor"
    if summary.verdict and summary.verdict.repair_follows:
        return "as far as borderline_acc_ratio allows, because the repair is to remove the rest; without the trigger"
    if summary.verdict and summary.verdict.confidence == "borderline":
        return "as far as borderline_acc_ratio allows, because the verdict is borderline; without the trigger"
    if summary.before.proxy_asr:
        return "where the proxy fails, without the trigger"
    return "as far as held-out accuracy allows, without the trigger (there is no proxy)"


def verdict_line(summary: PruneSummary) -> str:
    """Say the verdict in one sentence."""
    verdict = summary.verdict
    if verdict is None:
        return "verdict: none, because no target class was estimated"
    if verdict.benign_score is None:
        return f"verdict: none without a proxy; if there is a backdoor, its target is {verdict.target!r}"
    if verdict.confidence == "borderline":
        return f"verdict: borderline; there may be a backdoor to {verdict.target!r}"
    if verdict.backdoor_suspected:
        return f"verdict: a backdoor to {verdict.target!r} is suspected"
    return "verdict: no sign of a backdoor" + (", so nothing is pruned" if summary.select_by == "proxy" else "")


def footnotes(summary: PruneSummary) -> list[str]:
    """Say where the verdict comes from, what the figures were measured on, and which layers lost neurons."""
    counts, most = summary.images, summary.curve_eval_size
    triggered = f"; ASR, RA: {counts.triggered} triggered ones" if counts.triggered else ""
    fewer = 0 < most < max(counts.test or counts.held_out, counts.triggered)
    part = f"; the curve: at most {most} of each" if fewer else ""
    lost = ", ".join(f"{layer} {n} of {of}" for layer, (n, of) in summary.layers.items())
    return [
        *score_lines(summary),
        *holdout_lines(summary),
        f"  ACC: {test_images(summary)}{triggered}{part}",
        f"  neurons pruned: {lost or 'none'}",
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


def score_lines(summary: PruneSummary) -> list[str]:
    """Say how the benign score came about; nothing if there is no verdict."""
    verdict = summary.verdict
    if verdict is None:
        return []
    share = f"  the unlearned model classifies {verdict.target_share:.0%} of other images as {verdict.target!r}"
    if verdict.benign_score is None:
        return [share]
    score = f"{limits(verdict)}; {statistics(verdict, bool(summary.before.proxy_asr))}"
    return [f"  benign score: {score}", f"  {verdict.rarity.lower()} of clean models score as low (estimated)", share]


def limits(verdict: DetectionSummary) -> str:
    """Compare the benign score with the limit, or the two, that decide the verdict."""
    score, limit = f"{verdict.benign_score:.4f}", f"benign_threshold={verdict.benign_threshold:g}"
    if verdict.confidence == "no sign":
        return f"{score} > {limit}"
    clear = f"clear_threshold={verdict.clear_threshold:g}"
    return f"{score} ≤ {clear}" if verdict.confidence == "clear" else f"{clear} < {score} ≤ {limit}"


def statistics(verdict: DetectionSummary, proxy_works: bool) -> str:
    """Return the product that the benign score is, in words. Without a proxy that works, nothing was measured."""
    if verdict.norm_ratio is not None:
        others = f"norm of the proxy relative to the other classes' {verdict.norm_ratio:.2f}"
        return f"{others}, squared × removal cost {verdict.removal_cost:.3f} × {NORM_FREE_FACTOR:g}"
    measured = "the proxy flips no held-out image, which counts as norm 1 × removal cost 1"
    if proxy_works:
        measured = f"relative norm of the proxy {verdict.relative_norm:.3f} × removal cost {verdict.removal_cost:.2f}"
    return f"{measured} × ({FORGETTING_OFFSET:g} + forgetting rate {verdict.forgetting_rate:.2f})"


def fmt(value: float | None) -> str:
    """Format a share for the table; a dash if it is unknown."""
    return "–" if value is None else f"{value:.3f}"
