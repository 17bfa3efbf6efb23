"""A model that only exists as Python code: executed if the user names it in the call, and never otherwise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from stores import enter

from rnp_mlflow.cli import main
from rnp_mlflow.models import own_code, skeleton

CODE = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.GroupNorm(2, 8), nn.GELU(), nn.Flatten(), nn.Linear(7 * 7 * 8, 4))

def nothing():
    return 3
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Weights and images of one channel, and the code in a folder of its own."""
    enter(tmp_path, monkeypatch)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_nets.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr(own_code, "PERMITTED", set())
    skeleton.skeleton.cache_clear()
    namespace: dict[str, object] = {}
    exec(CODE, namespace)
    torch.manual_seed(0)
    model = namespace["build"]()  # type: ignore[operator]
    torch.save(model.state_dict(), tmp_path / "w.pt")
    images = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 1)).astype(np.uint8)
    with torch.no_grad():
        labels = model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * 2 - 1).argmax(1).numpy()
    np.savez(tmp_path / "own.npz", x=images, y=labels)
    return [f"--checkpoint={tmp_path / 'w.pt'}", f"--data={tmp_path / 'own.npz'}", "--mean=0.5", "--std=0.5"]


def test_code_named_in_the_call_is_run_and_said_and_later_calls_need_the_word_again(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["import", *arguments, "--model_factory=my_nets:build"]) == 0
    assert "runs your own code: my_nets:build()" in capsys.readouterr().err
    [run] = MlflowClient().search_runs(["0", "1"])
    assert run.data.metrics["acc"] == 1.0
    own_code.PERMITTED.clear()
    skeleton.skeleton.cache_clear()
    settings = ["--recovering_epochs=1", "--unlearning_epochs=1", "--proxy_steps=2", "--pruning_step=0.3"]
    again = ["prune", f"--model_run_id={run.info.run_id}", *settings]
    assert main(again) == 2
    assert "set RNP_MODEL_FACTORY=my_nets:build" in capsys.readouterr().err
    assert main(["rerun", f"--run_id={run.info.run_id}"]) == 2
    assert "set RNP_MODEL_FACTORY=my_nets:build" in capsys.readouterr().err
    monkeypatch.setenv("RNP_MODEL_FACTORY", "my_nets:build")
    assert main(again) == 0
    file = Path("code/my_nets.py")
    file.write_text(CODE.replace("GELU", "ReLU"))
    skeleton.skeleton.cache_clear()
    assert main(again) == 2, "the weights would fit, and another model would be purified"
    assert "is not the one that this model was imported with" in capsys.readouterr().err
    assert main(["rerun", f"--run_id={run.info.run_id}"]) == 1
    assert "model/model.json: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model_factory=my_nets:nothing"], "returned int, not a torch.nn.Module"),
        (["--model_factory=my_nets:absent"], "failed: AttributeError"),
        (["--model_factory=os.system"], "is not of the form package.module:function"),
        (["--model_factory=my_nets:build", "--model=resnet18"], "not both"),
        (["--model=code/my_nets:build"], "runs only if you say so"),
    ],
)
def test_other_code_is_refused_in_one_line(
    arguments: list[str], given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", *arguments, *given]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
