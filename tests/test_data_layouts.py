"""The table of docs/images.md: every layout is made, and taken or refused as the table says."""

import re
from pathlib import Path

import image_files  # noqa: F401  (its makers are in MAKERS too)
import pytest
from layouts import MAKERS

from rnp_mlflow.errors import DataError

DOCS = Path(__file__).parents[1] / "docs/images.md"


def rows() -> dict[str, str]:
    """layout → taken."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCS.read_text().splitlines()]
    table = [row for row in cells if len(row) == 3]
    assert table[0] == ["layout", "taken", "what happens"]
    return {row[0]: row[1] for row in table[2:]}


def test_every_row_has_a_maker_and_every_maker_a_row() -> None:
    assert list(rows()) == list(MAKERS)
    assert set(rows().values()) == {"yes", "no"}


@pytest.mark.parametrize("name", MAKERS, ids=lambda name: re.sub(r"\W+", "-", name).strip("-"))
def test_a_layout_is_taken_or_refused_as_the_table_says(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load, wanted = MAKERS[name](tmp_path)
    if rows()[name] == "no":
        assert isinstance(wanted, str)
        with pytest.raises(DataError, match=re.escape(wanted)) as refused:
            load()
        assert "\n" not in str(refused.value)
        return
    assert not isinstance(wanted, str)
    found = load()
    wanted(found, "".join(f"{record.getMessage()}\n" for record in caplog.records))
