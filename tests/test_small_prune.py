"""The four steps on a tiny model, as CI runs them in its environment of lowest versions, too; and what the docs say of
the names that they leave."""

import json
import re
import sys
from pathlib import Path

import pytest
import small

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which the small prune was made."""
    folder = tmp_path_factory.mktemp("home")
    told = small.prune([sys.executable, "-m", "rnp_mlflow"], folder, PYTHONPATH=str(ROOT))
    assert "chosen" in told
    assert "#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=rnp" in told
    return folder


def test_the_store_has_runs_that_speak_and_a_table_with_their_columns(home: Path) -> None:
    subject = "badnets 10 % · resnet18_narrow · digits · seed 0"
    named = {name for (name,) in small.table(home, "SELECT name FROM runs")}
    assert named == {f"{step} · {subject}" for step in ("attack", "unlearn", "recover", "prune")}
    assert small.table(home, "SELECT DISTINCT e.name FROM runs JOIN experiments e USING (experiment_id)") == [("rnp",)]
    tag = "SELECT value FROM experiment_tags WHERE key = 'mlflow.sharedViewState.rnp'"
    columns = json.loads(small.table(home, tag)[0][0])["selectedColumns"]
    shown = {name for entry in ("attack", "prune") for name in small.names(home, "metrics", entry)}
    shown |= small.names(home, "tags", "prune") | small.names(home, "tags", "unlearn") | {"seed", "Created"}
    assert {column.split("`")[1] for column in columns} - shown == set()


def test_descriptions_begin_with_the_figures_and_metrics_with_the_results(home: Path) -> None:
    notes: dict[str, str] = dict(small.table(home, "SELECT r.name, t.value FROM tags t JOIN runs r USING (run_uuid) "
                 "WHERE t.key = 'mlflow.note.content'"))  # fmt: skip
    assert len(notes) == 4
    pruned = next(note for name, note in notes.items() if name.startswith("prune"))
    figures = "SELECT m.key, m.value FROM latest_metrics m JOIN runs r USING (run_uuid) WHERE r.name LIKE 'prune%'"
    stored: dict[str, float] = dict(small.table(home, f"{figures} ORDER BY m.rowid"))
    assert list(stored)[:6] == ["acc", "asr", "ra", "der", "acc_before", "asr_before"]
    before = " | ".join(f"{float(stored[f'{name}_before']):.4f}" for name in ("acc", "asr", "ra"))
    assert f"| before | {before} |" in pruned.splitlines()[4]
    links: dict[str, int] = dict(
        small.table(home, "SELECT run_uuid, experiment_id FROM runs WHERE name NOT LIKE 'prune%'")
    )
    assert set(re.findall(r"#/experiments/1/runs/(\w+)\)", pruned)) == set(links)


def test_nothing_is_registered_as_purified_if_nothing_was_pruned(home: Path) -> None:
    """The tiny model has no backdoor that the proxy finds, or its verdict is open."""
    pruned = small.table(home, "SELECT value FROM latest_metrics WHERE key = 'pruned'")
    assert pruned == [(0.0,)]
    assert "rnp.not_registered" in small.names(home, "tags", "prune")
    assert small.table(home, "SELECT name FROM model_versions") == []


def test_images_are_logged_with_their_use_and_number(home: Path) -> None:
    rows = small.table(home, "SELECT DISTINCT t.value, d.dataset_profile FROM input_tags t JOIN inputs i USING "
                       "(input_uuid) JOIN datasets d ON d.dataset_uuid = i.source_id")  # fmt: skip
    counts = {use: json.loads(profile)["images"] for use, profile in rows}
    assert counts == {"training": 600, "test": 100, "triggered": 90, "clean": 120, "held out": 24}


@pytest.mark.parametrize("entry", ["attack", "unlearn", "recover", "prune"])
def test_every_metric_tag_and_file_is_in_the_docs(home: Path, entry: str) -> None:
    page = (ROOT / "docs" / "artifacts.md").read_text()
    table = (ROOT / "rnp_mlflow" / "artifacts" / "table.py").read_text()
    found = small.names(home, "metrics", entry) | small.names(home, "tags", entry)
    own = {name for name in found if not name.startswith("mlflow.")}
    assert len(own) > 10
    assert {name for name in own if f"`{name}`" not in page} == set()
    left = (home / "mlruns").glob("*/*/artifacts/**/*")
    files = {str(path).split("/artifacts/")[1] for path in left if path.is_file()}
    assert len(files) > 15
    known = set(re.findall(r'"([\w/]+\.\w+)"', table)) | set(re.findall(r"`([\w/]+\.\w+)`", page))
    assert files - known == set()
