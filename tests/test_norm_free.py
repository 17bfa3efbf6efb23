"""The small networks without BatchNorm: all steps by command, and what is different in these."""

import json
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from small import call
from stores import enter, newest
from torch import nn

from rnp_mlflow.core.backoff import MOST_FALL, CarefulSteps
from rnp_mlflow.core.neurons import comparable, ones_mask
from rnp_mlflow.core.sgd import SGD
from rnp_mlflow.core.units import remember_units, units_of
from rnp_mlflow.interop import masks
from rnp_mlflow.models import store


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "width"), [("vit_mini", 16), ("convnext_mini", 16), ("resnet18_gn", 4), ("vgg8", 16)]
)
def test_a_network_without_batchnorm_is_pruned_by_command(
    model: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch)
    assert call("prune", model=model, width=width, training_epochs=2, select_by="number", pruning_number=0.4) == 0
    assert "mask values are shares within each kind of neuron, and bn_stats is not used" in capsys.readouterr().err
    runs = {run.data.tags["rnp.entry"]: run.info.artifact_uri for run in MlflowClient().search_runs(["0", "1"])}
    places = {entry: Path(uri.removeprefix("file://")) for entry, uri in runs.items()}
    purified, _ = store.load(places["prune"] / "purified_model")
    suspect, _ = store.load(places["attack"] / "model")
    mask = masks.read(places["recover"] / "mask_values.txt", suspect)
    assert {name: len(values) for name, values in mask.items()} == {
        name: layer.count for name, layer in units_of(suspect).items()
    }
    count = json.loads((places["prune"] / "summary.json").read_text())["points"]["fixed"]["pruned"]
    zeros = [
        purified.get_parameter(part.parameter).movedim(part.dim, 0).reshape(layer.count, -1).abs().sum(1) == 0
        for layer in units_of(purified).values()
        for part in layer.parts[:1]
        if layer.kind != "head"
    ]
    assert 0 < int(torch.cat(zeros).sum()) <= count
    for name in ("mask_histograms.png", "trigger_change.png"):
        assert any(place.joinpath(name).is_file() for place in places.values()), name


@pytest.mark.slow
def test_a_suspected_backdoor_that_no_repair_removes_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every score is clear here. With repair_proxy=0, pruning is as with BatchNorm, and there is no such warning."""
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr("rnp_mlflow.pipeline.is_gone", lambda *_: False)
    settings = {"model": "convnext_mini", "width": 8, "training_epochs": 6, "proxy_steps": 40, "unlearning_epochs": 20,
                "clear_threshold": 9, "benign_threshold": 9, "repair_steps": 2}  # fmt: skip
    found = {}
    for largest in (2, 0):
        assert call("prune", **settings, repair_proxy=largest) == 0
        warned = "the backdoor may still be in the model" in capsys.readouterr().err
        assert ("No repair was kept" in newest("prune").data.tags["mlflow.note.content"]) == warned
        (run,) = MlflowClient().search_runs(["0"], "tags.`rnp.entry` = 'prune'", max_results=1)
        place = Path(run.info.artifact_uri.removeprefix("file://"))
        found[largest] = warned, json.loads((place / "summary.json").read_text())["verdict"]["repair_follows"]
    assert found == {2: (True, True), 0: (False, False)}


def test_mask_values_are_made_comparable_within_each_kind() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 5)
    )
    remember_units(model, torch.zeros(2, 3, 16, 16))
    mask = ones_mask(model)
    mask["1"] = torch.tensor([0.1, 0.9, 0.9, 1.0])
    mask["2"][:2] = torch.tensor([0.99, 0.98])
    found = comparable(model, mask)
    torch.testing.assert_close(found["1"] ** 3, torch.tensor([1, 3, 3, 4]) / 4)
    torch.testing.assert_close(found["2"] ** 3, torch.tensor([2, 1, 8, 8, 8, 8, 8, 8]) / 8)


def test_a_step_that_overshoots_is_taken_back_and_made_smaller() -> None:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)

    def accuracy() -> float:
        return min(1.0, float(net.weight.detach()))

    optimizer = SGD(net.parameters(), lr=0.72, momentum=0.0)
    careful = CarefulSteps(net, optimizer, accuracy)
    net.weight.grad = torch.ones(1, 1)
    careful.step()  # .72, .36, .18 and then .09 of accuracy
    assert optimizer.lr == pytest.approx(0.09)
    assert float(net.weight.detach()) == pytest.approx(0.91)
    assert MOST_FALL == 0.1
    assert careful.last == pytest.approx(0.91)
