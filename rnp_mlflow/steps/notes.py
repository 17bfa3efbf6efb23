"""Descriptions of runs and models, in Markdown: figures first, because the UI shows the first lines alone."""

from collections.abc import Iterable, Mapping

from rnp_mlflow.core.evaluate import Scores
from rnp_mlflow.errors import LineageError
from rnp_mlflow.steps.summary import PointFigures, PruneSummary
from rnp_mlflow.tracking import lineage, ui

ROLES = {"attack": "suspect", "unlearn": "unlearned model", "recover": "mask", "prune": "pruning"}
FIGURES = ("ACC", "ASR", "RA", "DER")


def table(rows: Mapping[str, Iterable[float | None]], head: Iterable[str] = FIGURES) -> str:
    """Return a table of shares (0 to 1), one row per name; unknown ones are empty."""
    columns = list(head)
    cells = [["", *columns], ["---"] * (len(columns) + 1)]
    cells += [[name, *("–" if value is None else f"{value:.4f}" for value in row)] for name, row in rows.items()]
    cells[0] = [f"\xa0\xa0{name}\xa0\xa0" if name else "" for name in cells[0]]  # MLflow's page leaves no room between
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def scores_table(rows: Mapping[str, Scores]) -> str:
    """Return a table of ACC, ASR and RA, one row per model."""
    return table({name: (s.acc, s.asr, s.ra) for name, s in rows.items()}, FIGURES[:3])


def pruning(summary: PruneSummary, upstream: Mapping[str, str]) -> str:
    """Describe a pruning run: its model (`card`), and what its metrics are."""
    curve = "The metrics `curve/…` and `rnp/…` show the end of the sweep, which is not a result; their charts show all."
    return f"{card(summary, upstream)}\n\n{curve}"


def card(summary: PruneSummary, runs: Mapping[str, str]) -> str:
    """Describe a purified model: verdict, before and after, what was pruned, and the runs that it comes from."""
    headline = " ".join(part for part in (f"**{verdict(summary)}**", certainty(summary), changed(summary)) if part)
    return "\n\n".join([headline, before_and_after(summary), lost(summary), measured(summary), lineage_links(runs)])


def changed(summary: PruneSummary) -> str:
    """Return ACC, ASR and RA before and after, those that are known, and how many neurons were pruned."""
    before, after = summary.before, summary.picked
    pairs = {"ACC": (before.acc, after.acc), "ASR": (before.asr, after.asr), "RA": (before.ra, after.ra)}
    known = [f"{name} {a:.3f} → {b:.3f}" for name, (a, b) in pairs.items() if a is not None and b is not None]
    return f"{', '.join(known)}; {after.num_pruned:,} neurons pruned."


def before_and_after(summary: PruneSummary) -> str:
    """Return the table of the suspect's and the purified model's figures."""
    points = {"before": summary.before, f"after ({summary.selected})": summary.picked}
    return table({name: four(point) for name, point in points.items()})


def four(point: PointFigures) -> tuple[float | None, ...]:
    """Return ACC, ASR, RA and DER of a point."""
    return point.acc, point.asr, point.ra, point.der


def verdict(summary: PruneSummary) -> str:
    """Say the verdict in a sentence."""
    found, left = summary.verdict, " No repair was kept, so it may still be there." if summary.lacks_repair else ""
    if found is None:
        return "No verdict: unlearning gave no estimate."
    if found.backdoor_suspected is None:
        return f"No verdict without a proxy; if there is a backdoor, it leads to class {found.target!r}."
    if found.confidence == "borderline":
        return f"Borderline: there may be a backdoor to class {found.target!r}.{left}"
    if found.backdoor_suspected:
        return f"A backdoor to class {found.target!r} is suspected.{left}"
    return "No sign of a backdoor."


def certainty(summary: PruneSummary) -> str:
    """Say how sure the verdict is; nothing without a benign score."""
    if summary.verdict is None or summary.verdict.false_alarm_rate is None:
        return ""
    return f"{summary.verdict.rarity} of clean models look as suspicious (estimated)."


def lost(summary: PruneSummary) -> str:
    """Say which neurons were pruned."""
    layers = [f"`{layer}` {n} of {of}" for layer, (n, of) in summary.layers.items()]
    if not layers:
        return "Nothing was pruned."
    return f"{summary.picked.num_pruned} neurons were pruned: {', '.join(layers)}."


def measured(summary: PruneSummary) -> str:
    """Say what the figures were measured on."""
    counts = summary.images
    clean = f"{counts.test} test images" if counts.test else f"{counts.held_out} held-out images"
    triggered = f"; ASR and RA: {counts.triggered} triggered ones" if counts.triggered else ""
    unknown = "" if counts.triggered else "; ASR and RA are unknown, because there are no triggered images"
    return f"ACC: {clean}{triggered}{unknown}. The defender has {counts.clean} clean images."


def lineage_links(upstream: Mapping[str, str]) -> str:
    """Return links to the runs that a run started from, or made."""
    return "Runs: " + " · ".join(link(ROLES[step], run_id) for step, run_id in upstream.items())


def link(text: str, run_id: str) -> str:
    """Return a link to a run's page, relative to the UI; the text alone if the run is gone."""
    try:
        experiment_id = lineage.get(run_id).info.experiment_id
    except LineageError:
        return text
    return f"[{text}](#/{ui.run_path(experiment_id, run_id)})"
