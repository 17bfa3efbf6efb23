"""The four steps on a tiny model, as CI runs them in its environment of lowest versions, too; and what the docs say of
the names that they leave."""

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
    return folder


@pytest.mark.parametrize("entry", ["attack", "unlearn", "recover", "prune"])
def test_every_metric_tag_and_file_is_in_the_docs(home: Path, entry: str) -> None:
    page = (ROOT / "docs" / "artifacts.md").read_text()
    table = (ROOT / "rnp_mlflow" / "artifacts" / "table.py").read_text()
    found = small.names(home, "metrics", entry) | small.names(home, "tags", entry)
    own = {name for name in found if not name.startswith("mlflow.")}
    assert len(own) > 10
    assert {name for name in own if f"`{name}`" not in page} == set()
    left = (home / "mlruns/0").glob("*/artifacts/**/*")
    files = {str(path).split("/artifacts/")[1] for path in left if path.is_file()}
    assert len(files) > 15
    known = set(re.findall(r'"([\w/]+\.\w+)"', table)) | set(re.findall(r"`([\w/]+\.\w+)`", page))
    assert files - known == set()
