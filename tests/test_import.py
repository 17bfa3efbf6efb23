"""Entry point `import`: from files outside, through the three steps unchanged, and out again."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import outside_files as files
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file
from stores import artifacts, assert_none_running, enter, newest

from rnp_mlflow.cli import main
from rnp_mlflow.core.evaluate import accuracy, predict
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import LineageError
from rnp_mlflow.interop import architectures, backdoorbench
from rnp_mlflow.models import store as model_store
from rnp_mlflow.tracking import remote_model
from rnp_mlflow.tracking import store as tracking_store

pytestmark = pytest.mark.slow

QUICK = ("--unlearning_epochs=1", "--recovering_epochs=1", "--pruning_step=0.3", "--holdout_crops=1", "--threads=2")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of its own; outside files in `record`."""
    folder = tmp_path_factory.mktemp("import")
    (folder / "record").mkdir()
    files.attack_result(folder / "record")
    files.clean_npz(folder / "clean.npz")
    files.image_folder(folder / "images")
    torch.save(files.suspect().state_dict(), folder / "suspect.pt")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        patch.setitem(architectures.OWN_WIDTH, "preactresnet18", 4)  # as if BackdoorBench's were as narrow as ours
        yield folder


@pytest.fixture(autouse=True)
def nothing_left_running(home: Path) -> Iterator[None]:
    yield
    assert_none_running()


def taken_in(*arguments: str) -> mlflow.entities.Run:
    assert main(["import", *arguments]) == 0
    return newest("import")


@pytest.fixture(scope="module")
def imported(home: Path) -> mlflow.entities.Run:
    return taken_in("--attack_result=record/attack_result.pt", "--data=clean.npz")


@pytest.fixture(scope="module")
def pruned(imported: mlflow.entities.Run) -> mlflow.entities.Run:
    arguments = [f"--model_run_id={imported.info.run_id}", "--ratio=0.5", "--export=backdoorbench",
                 "--register_as=tested", "--select_by=number", "--pruning_by=number", "--pruning_number=60",
                 *QUICK, "--pruning_step=50", "--pruning_max=150",
                 "--acc_ratio=0.01", "--min_acc_ratio=0.01", "--clean_threshold=0.9",
                 "--unlearning_epochs=20"]  # fmt: skip
    assert main(["prune", *arguments]) == 0
    return newest("prune")


def test_a_backdoorbench_result_becomes_a_model_run(imported: mlflow.entities.Run, home: Path) -> None:
    folder = artifacts(imported)
    assert {"model", "poison_plan.json", "triggered.safetensors", "samples.png", "data.json", "settings.json"} <= {
        file.name for file in folder.iterdir()
    }
    plan = json.loads((folder / "poison_plan.json").read_text())
    assert (plan["target"], plan["indices"], plan["triggered"]) == (0, [5, 9], "triggered.safetensors")
    model, spec = model_store.load(folder / "model")
    assert (spec.architecture, spec.width, spec.mean) == ("preactresnet18", 4, files.MEAN)
    images, labels = files.clean_tensors(40, 1)
    answers = predict(model, images, Preprocess(files.MEAN, files.STD))
    assert imported.data.metrics["acc"] == accuracy(answers, labels) > 0.9
    bad = load_file(folder / "triggered.safetensors")
    answers = predict(model, bad["images"], Preprocess(files.MEAN, files.STD))
    assert imported.data.metrics["asr"] == accuracy(answers, torch.zeros(18)) > 0.5
    assert imported.data.metrics["ra"] == accuracy(answers, bad["true_labels"])


def test_the_steps_run_on_it_unchanged_and_say_what_they_did(pruned: mlflow.entities.Run) -> None:
    summary = json.loads((artifacts(pruned) / "summary.json").read_text())
    assert summary["images"] == {"clean": 80, "held_out": 16, "test": 40, "triggered": 18}
    assert {"chosen", "fixed", "oracle"} == set(summary["points"])
    count = summary["points"]["fixed"]["pruned"]
    assert count == 60
    assert sum(lost for lost, _ in summary["layers"].values()) == count
    assert len((artifacts(pruned) / "pruned_neurons.csv").read_text().splitlines()) == count + 1


def test_the_exported_result_loads_strictly_and_gives_our_figures(pruned: mlflow.entities.Run, home: Path) -> None:
    content = torch.load(artifacts(pruned) / "defense_result.pt", weights_only=True)
    assert (content["model_name"], content["num_classes"]) == ("preactresnet18", 4)
    fresh, feed = files.network(seed=9), Preprocess(files.MEAN, files.STD)
    fresh.load_state_dict(content["model"], strict=True)
    images, labels = files.clean_tensors(40, 1)
    answers = predict(fresh, images, feed)
    figures = pruned.data.metrics
    assert figures["acc"] == accuracy(answers, labels)
    bad = backdoorbench.read(home / "record/attack_result.pt").triggered
    assert bad is not None
    assert figures["asr"] == accuracy(predict(fresh, bad.images, feed), bad.target_labels)
    assert (figures["acc"], figures["asr"]) != (figures["acc_before"], figures["asr_before"])


def test_the_model_is_logged_linked_and_registered(pruned: mlflow.entities.Run, home: Path) -> None:
    client = MlflowClient()
    version = client.get_model_version_by_alias("tested", "purified")
    assert version.tags["rnp.prune_run_id"] == pruned.info.run_id
    assert version.tags["rnp.model_run_id"] == pruned.data.tags["rnp.model_run_id"]
    assert float(version.tags["rnp.acc"]) == pruned.data.metrics["acc"]
    assert pruned.data.tags["rnp.registered"] == "models:/tested/1"
    model_id = pruned.outputs.model_outputs[0].model_id
    assert version.source == f"models:/{model_id}"
    logged = client.get_logged_model(model_id)
    figures = {metric.key: metric for metric in logged.metrics}
    assert {"acc", "asr", "ra", "der"} <= figures.keys()
    assert figures["acc"].value == pruned.data.metrics["acc"]
    assert figures["acc"].dataset_name == "cifar10"
    place = Path(mlflow.artifacts.download_artifacts(version.source))
    pins = (place / "requirements.txt").read_text().split()
    assert {pin.split("==")[0] for pin in pins} == {"mlflow", "numpy", "torch"}
    assert all("==" in pin and "+" not in pin for pin in pins)
    pixels = files.clean_images(7, 4)[0].transpose(0, 3, 1, 2)
    purified, spec = model_store.load(artifacts(pruned) / "purified_model")
    ours = purified(Preprocess(spec.mean, spec.std)(torch.from_numpy(pixels), None)).detach().numpy()
    for count in (1, 7):
        theirs = mlflow.pyfunc.load_model("models:/tested@purified").predict(pixels[:count])
        np.testing.assert_allclose(theirs, ours[:count], atol=1e-5)


def test_our_own_models_come_back_by_registry_run_and_folder_without_being_described(
    pruned: mlflow.entities.Run, home: Path
) -> None:
    wanted = load_file(artifacts(pruned) / "purified_model/model.safetensors")
    for source in ("--model_uri=models:/tested@purified", f"--model_uri=runs:/{pruned.info.run_id}/purified_model",
                   f"--checkpoint={artifacts(pruned) / 'purified_model'}"):  # fmt: skip
        run = taken_in(source, "--data=clean.npz")
        found = load_file(artifacts(run) / "model/model.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert run.data.metrics["acc"] == pruned.data.metrics["acc"]


def test_reruns_start_from_the_imported_model_and_register_nothing(
    pruned: mlflow.entities.Run, imported: mlflow.entities.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rerun", f"--run_id={pruned.info.run_id}"]) == 0
    assert capsys.readouterr().out.count(": identical") == 3
    assert newest("unlearn").data.tags["rnp.model_run_id"] == imported.info.run_id
    assert len(MlflowClient().search_model_versions("name = 'tested'")) == 1
    assert main(["rerun", f"--run_id={imported.info.run_id}"]) == 0


def test_a_rerun_names_the_checkpoint_that_has_changed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = taken_in("--checkpoint=suspect.pt", "--model=preactresnet18", "--data=images", "--dataset=cifar10")
    whole = Path("suspect.pt").read_bytes()
    weights = torch.load("suspect.pt", weights_only=True)
    weights["linear.bias"][0] += 1
    torch.save(weights, "suspect.pt")
    capsys.readouterr()
    try:
        assert main(["rerun", f"--run_id={run.info.run_id}"]) == 1
        found = capsys.readouterr().out
        assert re.search(r"checkpoint: the file's SHA-256 was \w{12}, is \w{12}\n", found), found
        assert "model/model.safetensors: 1 of" in found
    finally:
        Path("suspect.pt").write_bytes(whole)


def test_a_defender_with_clean_images_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = taken_in("--checkpoint=suspect.pt", "--model=preactresnet18", "--data=images", "--dataset=cifar10")
    assert "asr" not in run.data.metrics
    assert "ra" not in run.data.metrics
    capsys.readouterr()
    assert main(["main", f"--model_run_id={run.info.run_id}", *QUICK, "--verbose"]) == 0
    told = capsys.readouterr().out
    assert "held-out ACC: 16 of 80 clean images, each once, " in told
    assert "the same 16 as they are; there is no test part" in told
    summary = json.loads((artifacts(newest("prune")) / "summary.json").read_text())
    assert summary["images"] == {"clean": 80, "held_out": 16, "test": 0, "triggered": 0}
    assert "oracle" not in summary["points"]
    assert summary["before"]["asr"] is summary["points"]["chosen"]["asr"] is None
    assert not any("asr" in name or "der" in name for name in newest("prune").data.metrics)
    assert main(["prune", f"--model_run_id={run.info.run_id}", "--select_by=asr", *QUICK]) == 2
    assert "needs triggered images" in capsys.readouterr().err


def test_data_may_be_a_datasets_name_with_its_files_in_data_dir(imported: mlflow.entities.Run) -> None:
    run = taken_in("--checkpoint=suspect.pt", "--model=preactresnet18", "--data=cifar10", "--data_dir=clean.npz")
    assert run.data.metrics["acc"] == imported.data.metrics["acc"]
    spec = model_store.read_spec(artifacts(run) / "model/model.json")
    assert (spec.mean, spec.std) == (files.MEAN, files.STD)


def test_triggered_images_give_asr_from_a_folder_of_names_and_from_npz(home: Path) -> None:
    x, y = files.clean_images(12, 5)
    np.savez(home / "bad.npz", x=x, y=y)
    files.image_folder(home / "bad", count=12, seed=5)
    known = ("--checkpoint=suspect.pt", "--model=preactresnet18", "--data=images", "--dataset=cifar10", "--target=1")
    runs = [taken_in(*known, f"--triggered={name}") for name in ("bad.npz", "bad")]
    stored = [load_file(artifacts(run) / "triggered.safetensors") for run in runs]
    for images in stored:
        assert len(images["images"]) == 9  # those of the target class are left out
        assert (images["target_labels"] == 1).all()
        assert (images["true_labels"] != 1).all()
    assert runs[0].data.metrics == runs[1].data.metrics


def bad_inputs(home: Path) -> dict[str, tuple[list[str], str]]:
    """name → (arguments, words the one line must hold)."""
    hostile = files.hostile(home / "hostile", home / "made")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(hostile["mlflow"]), "evil")
        mlflow.log_dict({"a": 1}, "empty/a.json")
    known = ["--model=preactresnet18", "--data=clean.npz", "--dataset=cifar10"]
    files.bomb_npz(home / "bomb.npz", 10**15)
    (home / "short.pt").write_bytes((home / "suspect.pt").read_bytes()[:5000])
    weights = files.network().state_dict()
    save_file(weights | {"linear.bias": torch.full((4,), torch.nan)}, home / "nan.safetensors")
    save_file({f"a.{k}": torch.zeros(3, 3, 3, 3) for k in range(3)} | {"b": torch.zeros(1)}, home / "odd.safetensors")
    save_file(files.network(architecture="resnet18").state_dict(), home / "other.safetensors")
    for name in ("zero", "ten"):
        (home / name).mkdir()
        shutil.copytree(home / "record/bd_test_dataset", home / name / "bd_test_dataset")
    files.attack_result(home / "zero", num_classes=0)
    files.attack_result(home / "ten", num_classes=10)
    named = dataclasses.replace(files.spec(), classes=("cat", "bee", "dog", "ape"))
    model_store.save(home / "named", files.suspect(), named)
    files.image_folder(home / "numbered")
    for old, new in zip("0123", sorted(named.classes), strict=True):
        shutil.copytree(home / "numbered" / old, home / "animals" / new)
    (home / "lost").mkdir()
    shutil.copy(home / "record/attack_result.pt", home / "lost")
    x, y = files.clean_images(40, 1)
    np.savez(home / "large.npz", x=np.kron(x, np.ones((1, 2, 2, 1), np.uint8)), y=y)
    np.savez(home / "three.npz", x=x[y < 3], y=y[y < 3])
    np.savez(home / "target.npz", x=x[y == 1], y=y[y == 1])
    return {
        "no source": ([*known], "give one of attack_result, checkpoint, model_uri"),
        "two sources": (["--checkpoint=suspect.pt", "--model_uri=models:/m/1", *known], "not checkpoint and model_uri"),
        "no data": (["--checkpoint=suspect.pt", "--model=preactresnet18"], "give the clean images"),
        "no model": (["--checkpoint=odd.safetensors", *known[1:]], "fit no architecture known here: nearest is"),
        "no normalisation": (["--checkpoint=suspect.pt", *known[:2]], "normalisation is not known"),
        "missing": (["--checkpoint=absent.pt", *known], "does not exist"),
        "missing data": (["--checkpoint=suspect.pt", known[0], "--data=absent", known[2]], "absent"),
        "hostile result": ([f"--attack_result={hostile['attack_result']}", "--data=clean.npz"], "posix.mkdir"),
        "hostile checkpoint": ([f"--checkpoint={hostile['checkpoint']}", *known], "posix.mkdir"),
        "hostile old checkpoint": ([f"--checkpoint={hostile['legacy']}", *known], "posix.mkdir"),
        "hostile npz": (["--checkpoint=suspect.pt", known[0], f"--data={hostile['npz']}", known[2]], "pickle"),
        "hostile triggered": (
            ["--checkpoint=suspect.pt", *known, f"--triggered={hostile['npz']}", "--target=0"],
            "pickle",
        ),
        "hostile MLflow model": ([f"--model_uri=runs:/{run.info.run_id}/evil", *known], "save only its weights"),
        "hostile pt2": ([f"--checkpoint={hostile['pt2']}", *known], "pickled"),
        "no weights": ([f"--model_uri=runs:/{run.info.run_id}/empty", *known], "no file of weights"),
        "no such model": (["--model_uri=models:/absent/1", *known], "models:/absent/1 cannot be fetched"),
        "no such run": ([f"--model_uri=runs:/{'0' * 32}/model", *known], "cannot be fetched"),
        "odd address": (["--model_uri=/etc/passwd", *known], "give models:/"),
        "bomb": (["--checkpoint=suspect.pt", known[0], "--data=bomb.npz", known[2]], "refused"),
        "truncated": (["--checkpoint=short.pt", *known], "short.pt"),
        "NaN": (["--checkpoint=nan.safetensors", *known], "NaN"),
        "other architecture": (["--checkpoint=other.safetensors", *known], "not preactresnet18's: "),
        "0 classes": (["--attack_result=zero/attack_result.pt", "--data=clean.npz"], "0 classes"),
        "10 classes": (["--attack_result=ten/attack_result.pt", "--data=clean.npz"], "says 10 classes"),
        "lost images": (["--attack_result=lost/attack_result.pt", "--data=clean.npz"], "18 of 18 triggered images"),
        "no result": (["--attack_result=suspect.pt", "--data=clean.npz"], "is not a BackdoorBench attack result"),
        "both data": (["--checkpoint=suspect.pt", *known, "--data_dir=images"], "data or data_dir"),
        "odd mean": (["--checkpoint=suspect.pt", *known[:2], "--mean=nan,0,0", "--std=1,1,1"], "finite"),
        "other names": (["--checkpoint=named", "--data=animals"], "those of the images, in order, ape"),
        "other size": (["--attack_result=record/attack_result.pt", "--data=large.npz"], "takes images of 8 × 8 pixels"),
        "fewer classes": (["--checkpoint=suspect.pt", known[0], "--data=three.npz", known[2]], "4 classes, the images"),
        "no target": (["--checkpoint=suspect.pt", *known, "--triggered=images"], "need target"),
        "target alone": (["--checkpoint=suspect.pt", *known, "--target=1"], "only with triggered"),
        "odd target": (["--checkpoint=suspect.pt", *known, "--triggered=images", "--target=cat"], "'cat' is neither"),
        "only target": (
            ["--checkpoint=suspect.pt", *known, "--triggered=target.npz", "--target=1"],
            "of the target class",
        ),
        "no norm": (["--checkpoint=suspect.pt", "--model=alexnet", *known[1:]], "no classifier of alexnet"),
        "attack": (["--checkpoint=suspect.pt", *known, "--attack=badnets"], "--attack"),
    }


def test_bad_input_is_one_line_and_exit_2_and_nothing_is_executed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "hostile").mkdir()
    for name, (arguments, word) in bad_inputs(home).items():
        capsys.readouterr()
        assert main(["import", *arguments]) == 2, name
        lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, name
        assert word in lines[0], (name, lines[0])
    assert not (home / "made").exists()


def test_other_settings_than_the_imported_models_are_refused(
    imported: mlflow.entities.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unlearn", f"--model_run_id={imported.info.run_id}", "--attack=blended"]) == 2
    assert "an imported model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "tracking", "fetched"),
    [
        ("http://127.0.0.1:9/weights", "sqlite", False),
        ("https://example.com/weights", "http://127.0.0.1:9", False),
        ("/etc", "http://127.0.0.1:9", False),
        ("file:///etc", "http://127.0.0.1:9", False),
        ("/somewhere/local", "sqlite", True),
        ("mlflow-artifacts:/1/models/m/artifacts", "http://127.0.0.1:9", True),
        ("s3://bucket/weights", "http://127.0.0.1:9", True),
    ],
)
def test_a_registry_cannot_send_the_reader_elsewhere(
    source: str, tracking: str, fetched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way to name the model leads to the same source; none is asked for before it is known to be the store's."""
    enter(tmp_path, monkeypatch)
    client = MlflowClient()
    client.create_registered_model("odd")
    client.create_model_version("odd", source)
    client.set_registered_model_alias("odd", "it", "1")
    real = tracking_store.client()
    monkeypatch.setattr(tracking_store, "client", lambda: real)
    monkeypatch.setattr(
        mlflow, "get_tracking_uri", lambda: f"sqlite:///{tmp_path}/mlflow.db" if tracking == "sqlite" else tracking
    )
    for uri in ("models:/odd/1", "models:/odd@it", "models:/odd/latest"):
        if fetched:
            remote_model.check_location(uri)
        else:
            with pytest.raises(LineageError, match="not in the tracking store"):
                remote_model.check_location(uri)
