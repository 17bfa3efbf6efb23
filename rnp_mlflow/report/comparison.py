"""One table of many runs: mean and spread of their figures, by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

FIGURES = {
    "acc_before": "ACC before",
    "acc": "ACC",
    "acc_lost": "ACC lost",
    "asr_before": "ASR before",
    "asr": "ASR",
    "ra": "RA",
    "der": "DER",
}
UNKNOWN = "–"


def summarise(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return one row per group, in the order of their names: `by`, `n`, and NAME_mean and NAME_std of each figure.

    runs: a row per run, with the columns `by` and those of `FIGURES` but `acc_lost`; an unknown figure is NaN, and is
    left out of mean and spread. std: of the sample (n - 1); NaN for one run.
    """
    table = runs.assign(acc_lost=runs["acc_before"] - runs["acc"])
    groups = table.groupby(list(by), dropna=False, sort=True)
    found = groups[list(FIGURES)].agg(["mean", "std"])
    found.columns = pd.Index([f"{name}_{kind}" for name, kind in found.columns])
    found.insert(0, "n", groups.size())
    return found.reset_index()


def cells(summary: pd.DataFrame, by: Sequence[str], figures: Sequence[str] = tuple(FIGURES)) -> pd.DataFrame:
    """Return the summary as it is shown: the groups, n, and `mean ± std` of each figure, with three decimals."""
    shown = summary[list(by)].astype(str)
    shown["n"] = summary["n"].astype(str)
    for name in figures:
        pairs = zip(summary[f"{name}_mean"], summary[f"{name}_std"], strict=True)
        shown[FIGURES[name]] = [cell(mean, std) for mean, std in pairs]
    return shown


def cell(mean: float, std: float) -> str:
    """Return a figure with its spread; the mean alone if there is one run; a dash if it is unknown."""
    if pd.isna(mean):
        return UNKNOWN
    return f"{mean:.3f}" if pd.isna(std) else f"{mean:.3f} ± {std:.3f}"


def markdown(shown: pd.DataFrame) -> list[str]:
    """Return the lines of a Markdown table, with columns as wide as they need."""
    lines = [list(map(str, shown.columns)), *([str(c).replace("|", "\\|") for c in row] for row in shown.to_numpy())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [padded[0], rule, *padded[1:]]


def latex(shown: pd.DataFrame) -> str:
    """Return the table for a paper, with the rules of booktabs."""
    text: str = shown.to_latex(index=False, escape=True)
    return text.replace(" ± ", r" $\pm$ ").replace(UNKNOWN, "--")


@dataclass(frozen=True)
class Comparison:
    """All that the page says; all text is escaped. links: (words, address)."""

    title: str
    notes: Sequence[str]
    links: Sequence[tuple[str, str]]
    shown: pd.DataFrame


def write(folder: Path, summary: pd.DataFrame, page: Comparison, picture: str | None) -> None:
    """Write the table as comparison.csv, .md, .tex and .html. picture: the address of the curves' content."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    summary.to_csv(folder / "comparison.csv", index=False)
    (folder / "comparison.md").write_text("\n".join(markdown(page.shown)) + "\n")
    (folder / "comparison.tex").write_text(latex(page.shown))
    environment = Environment(
        loader=PackageLoader("rnp_mlflow.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    content: Mapping[str, object] = {
        "title": page.title, "notes": page.notes, "links": page.links, "picture": picture,
        "heads": list(page.shown.columns), "rows": page.shown.to_numpy().tolist(),
    }  # fmt: skip
    (folder / "comparison.html").write_text(environment.get_template("comparison.html.j2").render(content))
