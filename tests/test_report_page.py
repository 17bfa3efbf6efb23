"""The report page: whole without a network, and safe with hostile names."""

import base64
import re
from dataclasses import replace
from pathlib import Path

from rnp_mlflow.report.page import Picture, Report, Row, Run, inlined, write_report

HOSTILE = '<script>alert(1)</script> & $x$ "quoted" ' + "a" * 300
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
REPORT = Report(
    title="prune · clean · digits · seed 0",
    verdict="No sign of a backdoor.",
    suspected=False,
    result=["Nothing was pruned."],
    basis=["benign score: 0.3 > benign_threshold=0.007"],
    heads=["point", "ACC"],
    rows=[Row(["before", "0.9876"]), Row(["chosen", "0.9870"], used=True)],
    notes=["n: 500 test images"],
    pictures=[],
    runs=[Run("mask", "r1", "http://server/#/experiments/1/runs/r1"), Run("pruning", "r2")],
    parameters=[("seed", "3", "0")],
    commands=["python -m rnp_mlflow rerun --run_id r2"],
    provenance=[("torch", "2.15.0")],
)


def page(tmp_path: Path, report: Report) -> str:
    write_report(tmp_path / "report.html", report)
    return (tmp_path / "report.html").read_text()


def test_the_page_holds_its_pictures_and_asks_no_network(tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    picture.write_bytes(SVG)
    found = page(tmp_path, replace(REPORT, pictures=[Picture(inlined(picture), "Curve", "How to read it.")]))
    (address,) = re.findall(r'<img src="([^"]*)"', found)
    assert base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")) == SVG
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', found) == ["http://server/#/experiments/1/runs/r1"]
    assert not re.search(r"<script|<link|@import|url\(", found)
    assert 'alt="Curve"' in found
    assert "@media print" in found


def test_the_page_says_verdict_figures_runs_and_how_to_repeat(tmp_path: Path) -> None:
    found = page(tmp_path, REPORT)
    for words in (REPORT.verdict, *REPORT.result, *REPORT.basis, *REPORT.notes, *REPORT.commands, "2.15.0", "r2"):
        assert words.replace(">", "&gt;") in found
    assert '<tr class="used"><td>chosen</td><td>0.9870</td></tr>' in found
    assert "<td><code>seed</code></td><td>3</td><td>0</td>" in found
    assert "<p>None.</p>" in page(tmp_path, replace(REPORT, parameters=[]))


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    pictures = [Picture("x", HOSTILE, HOSTILE)]
    found = page(tmp_path, replace(REPORT, title=HOSTILE, verdict=HOSTILE, rows=[Row([HOSTILE])], pictures=pictures))
    assert "<script" not in found
    assert found.count("&lt;script&gt;alert(1)") == 7
