"""What a store holds is held to its type, and to paths below the run's folder, before anything relies on it."""

import json
from pathlib import Path

import pytest
from mlflow.entities import Run, RunData, RunInfo

from rnp_mlflow.artifacts import detection, manifest, poisoning, source, stored
from rnp_mlflow.errors import LineageError
from rnp_mlflow.tracking import contents, lineage

PLAN = {"attack": "badnets", "target": 0, "label_mode": None, "poison_rate": 0.1, "triggered": None}


def written(place: Path, content: object) -> Path:
    place.write_text(content if isinstance(content, str) else json.dumps(content))
    return place


@pytest.mark.parametrize(
    ("read", "content", "words"),
    [
        (poisoning.read, "{", "is broken"),
        (poisoning.read, "[" * 100_000, "is broken"),
        (poisoning.read, [1], "is broken"),
        (poisoning.read, {}, "attack"),
        (poisoning.read, PLAN | {"target": "x"}, "target"),
        (poisoning.read, PLAN | {"triggered": "../../secret"}, "names another file"),
        (source.read, {"data_dir": "/x"}, "dataset"),
        (source.read, {"dataset": "folder", "image_size": "large"}, "image_size"),
        (detection.read_estimate, {"target": "x"}, "is broken"),
        (stored.read_json, "{}" + " " * (65 << 20), "is larger than"),
    ],
)
def test_what_a_store_holds_is_held_to_its_type(read: object, content: object, words: str, tmp_path: Path) -> None:
    assert callable(read)
    with pytest.raises(LineageError, match=words) as refused:
        read(written(tmp_path / "x.json", content))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_a_plan_that_is_right_is_read(tmp_path: Path) -> None:
    assert poisoning.read(written(tmp_path / "x.json", PLAN | {"indices": [1, 2]}))["indices"] == [1, 2]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "model/../../x"])
def test_a_manifest_names_files_of_its_run_alone(name: str, tmp_path: Path) -> None:
    file = written(tmp_path / "manifest.json", {name: "0" * 64})
    with pytest.raises(ValueError, match="outside of the run's folder"):
        manifest.read(file, manifest.file_digest(file))


@pytest.mark.parametrize("run_id", ["../../x", "/tmp/x", "", "a/b", "a" * 65, "\x1b[2J", "a\n"])
def test_a_run_id_is_no_path(run_id: str) -> None:
    with pytest.raises(LineageError, match="there can be no run"):
        contents.download(Run(RunInfo(run_id, "0", "", "FINISHED", 0, 0, "active", "/tmp"), RunData()), "data.json")
    with pytest.raises(LineageError, match="there can be no run"):
        lineage.get(run_id)
