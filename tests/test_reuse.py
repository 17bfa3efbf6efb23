"""A run is reused only if all that it depends on is the same, and read only if it is what the run wrote."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import outside_files as files
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import save_file
from stores import artifacts, assert_none_running, enter, newest

from rnp_mlflow.artifacts import detection, table
from rnp_mlflow.cli import main
from rnp_mlflow.config import RUN_ID
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.verdict import TargetEstimate
from rnp_mlflow.steps import chain, runtime, subject
from rnp_mlflow.steps.plan import make_plan
from rnp_mlflow.tracking import contents, lineage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = (
    "--unlearning_epochs=2", "--unlearning_lr=0.1", "--unlearning_batch_size=16", "--clean_threshold=0.9",
    "--recovering_epochs=2", "--proxy_steps=2", "--threads=1",
)  # fmt: skip
SWEEP = ("--pruning_step=0.4", "--holdout_crops=1", "--refine=0")
MEAN, STD = (",".join(map(str, values)) for values in (files.MEAN, files.STD))
NAMES = ("ant", "bee", "cat", "dog")
CHECKPOINT = ("--checkpoint=suspect.pt", "--model=preactresnet18")
KNOWN = (*CHECKPOINT, f"--mean={MEAN}", f"--std={STD}", "--data=images", "--triggered=bad", "--target=1")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of its own; a suspect's weights, clean and triggered images in the working folder."""
    folder = tmp_path_factory.mktemp("reuse")
    torch.save(files.suspect().state_dict(), folder / "suspect.pt")
    files.image_folder(folder / "images", names=NAMES)
    files.image_folder(folder / "bad", 12, 5, NAMES)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        yield folder


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    assert_none_running()


def taken_in(*arguments: str) -> str:
    assert main(["import", *arguments]) == 0
    run_id: str = newest("import").info.run_id
    return run_id


@pytest.fixture(scope="module")
def runs(home: Path) -> dict[str, mlflow.entities.Run]:
    """entry → run of one finished chain, from an import to `prune`, a `main` from the same import, and an `attack`."""
    small = {"width": 4, "train_size": 200, "test_size": 50, "training_epochs": 1, "threads": 1}
    assert main(["attack", *(f"--{name}={value}" for name, value in small.items())]) == 0
    model = taken_in(*KNOWN)
    assert main(["main", f"--model_run_id={model}", *QUICK, *SWEEP]) == 0
    assert main(["prune", f"--model_run_id={model}", *QUICK, *SWEEP]) == 0
    return {entry: newest(entry) for entry in ("attack", "import", "unlearn", "recover", "prune", "main")}


def changed_pixel(home: Path) -> list[str]:
    place = Path(shutil.copytree("images", home / "pixel")) / "ant/0.png"
    pixels = np.array(Image.open(place))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(place)
    return ["--data=pixel"]


def changed_label(home: Path) -> list[str]:
    root = Path(shutil.copytree("images", home / "label"))
    (root / "ant/0.png").rename(root / "bee/0.png")
    return ["--data=label"]


def other_order(home: Path) -> list[str]:
    """The same images, in the same order, under other names of the classes."""
    files.image_folder(home / "renamed", 80, 2, ("ape", "bat", "cow", "doe"))
    files.image_folder(home / "renamed_bad", 12, 5, ("ape", "bat", "cow", "doe"))
    return ["--data=renamed", "--triggered=renamed_bad"]


def other_triggered(home: Path) -> list[str]:
    files.image_folder(home / "worse", 12, 6, NAMES)
    return ["--triggered=worse"]


def other_order_of_numbers(home: Path) -> list[str]:
    """Class folders that are numbers, sorted as text."""
    names = ("1", "2", "10", "20")
    files.image_folder(home / "numbered", 80, 2, names)
    files.image_folder(home / "numbered_bad", 12, 5, names)
    return ["--data=numbered", "--triggered=numbered_bad", "--class_order=text"]


CHANGES: dict[str, Callable[[Path], list[str]]] = {
    "images": changed_pixel,
    "labels": changed_label,
    "names of the classes": other_order,
    "order of the classes": other_order_of_numbers,
    "mean": lambda home: ["--mean=0.5,0.5,0.5"],
    "std": lambda home: ["--std=0.25,0.25,0.25"],
    "image size": lambda home: ["--image_size=16"],
    "triggered images": other_triggered,
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_import_that_differs_in_one_thing_shares_nothing_downstream(
    change: str, home: Path, runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    other = taken_in(*KNOWN, *CHANGES[change](home))
    capsys.readouterr()
    assert main(["recover", f"--model_run_id={other}", *QUICK]) == 0
    assert "same inputs" not in capsys.readouterr().err
    assert newest("recover").data.tags["rnp.model_run_id"] == other
    assert newest("unlearn").data.tags["rnp.model_run_id"] == other
    assert newest("recover").data.tags["rnp.unlearn_run_id"] == newest("unlearn").info.run_id


def test_the_same_weights_in_another_architecture_share_nothing(home: Path) -> None:
    """Ours and torchvision's MobileNetV2 have the same keys and shapes, and other strides."""
    images = torch.randint(256, (16, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.savez(home / "large.npz", x=images.numpy(), y=np.arange(16) % 4)
    weights = files.network(architecture="torchvision/mobilenet_v2", width=None).state_dict()
    save_file(weights, home / "mobile.safetensors")
    made = []
    for architecture in ("small/mobilenet_v2", "torchvision/mobilenet_v2"):
        file = home / f"{architecture.replace('/', '_')}.safetensors"
        shutil.copy(home / "mobile.safetensors", file)
        spec = ["--mean=0.5,0.5,0.5", "--std=0.5,0.5,0.5", "--data=large.npz"]
        taken = taken_in(f"--checkpoint={file}", f"--model={architecture}", *spec)
        plan = make_plan("unlearn", {"model_run_id": taken})
        made.append(chain.inputs_digest("unlearn", plan, {"attack": taken}))
    specs = [json.loads((artifacts(run) / "model/model.json").read_text())["architecture"] for run in
             MlflowClient().search_runs(["0"], "tags.`rnp.entry` = 'import'", max_results=2)]  # fmt: skip
    assert len(set(specs)) == len(set(made)) == 2


def test_the_same_import_twice_shares_all_and_each_chain_names_its_own(
    runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    again = taken_in(*KNOWN)
    capsys.readouterr()
    assert main(["prune", f"--model_run_id={again}", *QUICK, *SWEEP]) == 0
    assert capsys.readouterr().err.count("same inputs") == 2
    assert newest("prune").data.tags["rnp.model_run_id"] == again
    assert newest("prune").data.tags["rnp.recover_run_id"] == runs["recover"].info.run_id


@contextmanager
def changed(file: Path, how: str) -> Iterator[None]:
    """The file is gone, or one byte in its middle is another, while the context lasts."""
    content = file.read_bytes()
    at = len(content) // 2
    file.unlink()
    if how == "changed":
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    try:
        yield
    finally:
        file.write_bytes(content)


def call_by_id(entry: str, run_id: str) -> list[str]:
    """Arguments of a call that reads this run."""
    following = {"attack": "unlearn", "import": "unlearn", "unlearn": "recover", "recover": "prune"}
    if entry in following:
        return [following[entry], f"--{RUN_ID.get(entry, 'model_run_id')}={run_id}"]
    return ["rerun", f"--run_id={run_id}"]


# What the runs of this file leave of the table of artifacts: all that is required, and these.
LEFT = {
    "attack": {table.TRIGGER}, "import": {table.TRIGGERED}, "unlearn": {table.VERDICT, table.PROXY},
}  # fmt: skip
ARTIFACTS = {
    entry: tuple(a.path for a in artifacts if not a.optional or a.path in LEFT.get(entry, ()))
    for entry, artifacts in table.ARTIFACTS.items()
}


@pytest.mark.parametrize("how", ["gone", "changed"])
@pytest.mark.parametrize("entry", ARTIFACTS)
def test_a_run_that_lost_an_artifact_is_refused_by_id_and_never_reused(
    entry: str, how: str, runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[entry]
    for name in (*ARTIFACTS[entry], "manifest.json"):
        assert found(run) == run.info.run_id
        with changed(artifacts(run) / name, how):
            capsys.readouterr()
            assert main(call_by_id(entry, run.info.run_id)) == 2, name
            last = capsys.readouterr().err.strip().splitlines()[-1]
            assert last.startswith("error: "), last
            assert run.info.run_id in last
            assert name in last
            assert found(run) is None, name
    assert found(run) == run.info.run_id


def found(run: mlflow.entities.Run) -> str | None:
    """The run that a call with the inputs of this one would take; only these two steps are looked for."""
    if run.data.tags["rnp.entry"] not in ("unlearn", "recover"):
        return None if contents.find_fault(run) else run.info.run_id
    with mlflow.start_run() as asking:
        taken = lineage.find_finished(run.data.tags["rnp.entry"], run.data.tags["rnp.inputs"])
    MlflowClient().delete_run(asking.info.run_id)
    return taken


def test_a_lost_artifact_further_up_is_refused_by_id_and_made_again_otherwise(
    runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    unlearned, recovered = runs["unlearn"], runs["recover"]
    with changed(artifacts(unlearned) / "proxy.safetensors", "gone"):
        assert main(["prune", f"--recover_run_id={recovered.info.run_id}", *SWEEP]) == 2
        assert f"run {unlearned.info.run_id} no longer has its artifact proxy.safetensors" in capsys.readouterr().err
        assert main(["prune", f"--model_run_id={runs['import'].info.run_id}", *QUICK, *SWEEP]) == 0
        said = capsys.readouterr().err
        assert f"recover: reuses run {recovered.info.run_id}" in said
        assert "unlearn: reuses run" not in said
        tags = newest("prune").data.tags
        assert tags["rnp.unlearn_run_id"] == newest("unlearn").info.run_id != unlearned.info.run_id
        assert json.loads((artifacts(newest("prune")) / "summary.json").read_text())["verdict"]
    MlflowClient().delete_run(newest("unlearn").info.run_id)


def test_a_run_made_before_manifests_is_told_by_its_metrics_and_shares_with_no_other(
    runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in ("import", "unlearn"):
        run, client = runs[entry], MlflowClient()
        tag = run.data.tags["rnp.manifest"]
        client.delete_tag(run.info.run_id, "rnp.manifest")
        for name in contents.METRIC_OF_OPTIONAL.values() if entry == "unlearn" else ():
            client.log_metric(run.info.run_id, name, 0)  # such a run has them, and not a manifest
        lineage.forget()
        try:
            assert lineage.output_of(run.info.run_id) == run.info.run_id
            lineage.require(run.info.run_id, entry)
            for name in ARTIFACTS[entry]:
                with changed(artifacts(run) / name, "gone"):
                    assert main(call_by_id(entry, run.info.run_id)) == 2
                    assert name in capsys.readouterr().err
        finally:
            client.set_tag(run.info.run_id, "rnp.manifest", tag)


def test_a_deleted_run_is_refused(runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]) -> None:
    run_id = runs["recover"].info.run_id
    MlflowClient().delete_run(run_id)
    try:
        assert main(["prune", f"--recover_run_id={run_id}", *SWEEP]) == 2
        assert "was deleted" in capsys.readouterr().err
    finally:
        MlflowClient().restore_run(run_id)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("--attack=badnets", "attack=badnets cannot be given"),
        ("--poison_rate=0.1", "poison_rate=0.1 cannot be given"),
        ("--training_epochs=5", "training_epochs=5 cannot be given"),
    ],
)
def test_a_parameter_of_attack_cannot_be_given_with_an_import_even_if_it_is_the_default(
    value: str, words: str, runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unlearn", f"--model_run_id={runs['import'].info.run_id}", value]) == 2
    assert words in capsys.readouterr().err


def test_an_index_file_is_held_against_the_images_of_the_named_run(
    home: Path, runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["unlearn"]
    own = (artifacts(run) / "defence_index.txt").read_text()
    (home / "own.txt").write_text(own)
    (home / "other.txt").write_text("".join(f"{k}\n" for k in range(8)))
    (home / "words.txt").write_text("one\n")
    for name, code in {"own": 0, "other": 2, "words": 2}.items():
        assert main(["recover", f"--unlearn_run_id={run.info.run_id}", f"--index={name}.txt", *QUICK[4:]]) == code, name
    said = capsys.readouterr().err
    assert f"other.txt lists other images than run {run.info.run_id} was made with" in said
    assert "words.txt cannot be read" in said


def test_a_preset_is_held_against_the_run_too(
    runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs have proxy_steps=2; the default preset stands for 100, the reference for 0."""
    for preset in ("default", "reference"):
        assert main(["prune", f"--recover_run_id={runs['recover'].info.run_id}", f"--preset={preset}"]) == 2
        assert "was made with" in capsys.readouterr().err


def test_renamed_classes_make_another_attack(home: Path) -> None:
    root = home / "named"
    for part in ("train", "test"):
        files.image_folder(root / part, 24, 3, NAMES)
    plan = make_plan("attack", {"dataset": "folder", "data_dir": str(root), "width": 4})
    before = chain.inputs_digest("attack", plan, {})
    for part in ("train", "test"):
        for old, new in (("dog", "fox"), ("cat", "dog"), ("bee", "cat")):
            (root / part / old).rename(root / part / new)
    subject.load_data.cache_clear()
    assert chain.inputs_digest("attack", plan, {}) != before


def test_images_that_changed_since_an_earlier_call_of_the_same_process_are_read_again(home: Path) -> None:
    for part in ("train", "test"):
        files.image_folder(home / "fresh" / part, 24, 3, NAMES)
    small = ("--dataset=folder", "--data_dir=fresh", "--width=4", "--training_epochs=1", "--threads=1")
    digests = []
    for _ in range(2):
        assert main(["attack", *small]) == 0
        digests.append(newest("attack").data.tags["rnp.inputs"])
        place = home / "fresh/train/ant/0.png"
        Image.fromarray(255 - np.array(Image.open(place))).save(place)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--export=backdoorbench",), "export=backdoorbench"),
        (("--attack=none", "--select_by=asr", "--width=4", "--train_size=200", "--test_size=50"), "select_by=asr"),
    ],
)
def test_what_the_suspect_cannot_do_is_refused_before_any_work(
    arguments: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(MlflowClient().search_runs(["0"]))
    assert main(["prune", *arguments]) == 2
    assert word in capsys.readouterr().err.strip().splitlines()[-1]
    assert len(MlflowClient().search_runs(["0"])) == before


@pytest.mark.parametrize("value", [10, 5])
def test_a_value_that_is_given_is_held_against_the_run_even_if_it_is_the_default(
    value: int, runs: dict[str, mlflow.entities.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """recovering_epochs: the run was made with 2, the default is 10."""
    by_id = f"--recover_run_id={runs['recover'].info.run_id}"
    assert main(["prune", by_id, f"--recovering_epochs={value}", *SWEEP]) == 2
    assert f"recovering_epochs={value}, but run {runs['recover'].info.run_id} was made with recovering_epochs=2" in (
        capsys.readouterr().err
    )
    assert main(["prune", by_id, "--recovering_epochs=2", "--schedule=10,20", "--alpha=0.2", *SWEEP]) == 0
    assert main(["prune", by_id, "--unlearning_epochs=20", *SWEEP]) == 2
    assert f"run {runs['unlearn'].info.run_id} was made with unlearning_epochs=2" in capsys.readouterr().err


def test_a_default_that_is_given_to_mlflow_run_is_held_against_the_run_too(
    home: Path, runs: dict[str, mlflow.entities.Run]
) -> None:
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
                        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    given = ["-P", f"recover_run_id={runs['recover'].info.run_id}", "-P", "pruning_step=0.4", "-P", "holdout_crops=1"]
    asked = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "prune", "--env-manager", "local", *given]
    done = subprocess.run([*asked, "-P", "recovering_epochs=10"], capture_output=True, text=True, env=env, cwd=home)
    assert done.returncode != 0
    assert "recovering_epochs=10, but run" in done.stderr
    done = subprocess.run([*asked, "-P", "recovering_epochs=2"], capture_output=True, text=True, env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    params = newest("prune").data.params
    assert (params["pruning_step"], params["recovering_epochs"]) == ("0.4", "2")
    assert "alpha" not in params, "the named run has it"


def test_another_processor_is_another_input(
    runs: dict[str, mlflow.entities.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = {"attack": runs["import"].info.run_id}
    plan = make_plan("unlearn", {"model_run_id": upstream["attack"]})
    digests = {chain.inputs_digest("unlearn", plan, upstream)}
    device = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name in ("H100", "H200"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        said = runtime.processor(device)
        assert said == f"{name} (9.0)"
        with monkeypatch.context() as patch:
            patch.setattr(runtime, "processor", lambda device, said=said: said)
            digests.add(chain.inputs_digest("unlearn", plan, upstream))
    assert len(digests) == 3
    assert runs["unlearn"].data.tags["rnp.processor"] == torch.backends.cpu.get_cpu_capability()


def test_a_mask_file_is_pruned_on_images_that_are_inputs_too(runs: dict[str, mlflow.entities.Run]) -> None:
    mask, upstream = artifacts(runs["recover"]) / "mask_values.csv", {"attack": runs["import"].info.run_id}
    made = {
        chain.inputs_digest("prune", make_plan("prune", {"mask_file": str(mask), "holdout": share}), upstream)
        for share in (0.2, 0.4)
    }
    assert len(made) == 2


def test_a_rerun_compares_proxy_verdict_and_triggered_images(
    runs: dict[str, mlflow.entities.Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_proxy, write_estimate = detection.write_proxy, detection.write_estimate

    def other_proxy(folder: Path, proxy: ProxyTrigger) -> None:
        write_proxy(folder, replace(proxy, delta=proxy.delta + 1))

    def other_estimate(folder: Path, estimate: TargetEstimate) -> None:
        write_estimate(folder, replace(estimate, target_share=0.123))

    monkeypatch.setattr(detection, "write_proxy", other_proxy)
    monkeypatch.setattr(detection, "write_estimate", other_estimate)
    was = {name: runs["unlearn"].data.tags[f"rnp.{name}"] for name in ("code", "torch", "torchvision")}
    for name in was:
        MlflowClient().set_tag(runs["unlearn"].info.run_id, f"rnp.{name}", "another")
    assert main(["rerun", f"--run_id={runs['unlearn'].info.run_id}"]) == 1
    said = capsys.readouterr().out
    assert "proxy.safetensors: 1 of 4 tensors differ, by up to 1" in said
    assert "verdict.json: 1 of" in said
    for name, value in was.items():
        assert f"{name} was another, is {value[:12]}" in said
        MlflowClient().set_tag(runs["unlearn"].info.run_id, f"rnp.{name}", value)
    monkeypatch.undo()
    assert main(["rerun", f"--run_id={runs['unlearn'].info.run_id}"]) == 0


def test_a_rerun_says_which_file_one_of_the_two_runs_did_not_leave(
    runs: dict[str, mlflow.entities.Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detection, "write_proxy", lambda folder, proxy: None)
    assert main(["rerun", f"--run_id={runs['unlearn'].info.run_id}"]) == 1
    assert "proxy.safetensors: only the old run has it" in capsys.readouterr().out
