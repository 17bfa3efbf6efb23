"""Versions are written in four files that agree; the wheel and the git address work; nothing names a registry."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import small
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BOUNDS = {r.name: r for r in map(Requirement, PYPROJECT["project"]["dependencies"])}


def pins(file: str) -> dict[str, str]:
    """name → version of a file of NAME==VERSION lines; comments are the only other lines."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z\d]+(-[a-z\d]+)*==[\w.+]+", line) for line in lines), file
    return dict(line.split("==") for line in lines)


def conda_pins() -> list[str]:
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert any(str(item).startswith("python=3.11") for item in conda)
    return next(item["pip"] for item in conda if isinstance(item, dict))


def test_conda_pins_the_dependencies_and_is_held_to_the_whole_set() -> None:
    first, *rest = conda_pins()
    assert first == "-c constraints.txt"
    assert {line.split("==")[0] for line in rest} == set(BOUNDS)
    exact = pins("constraints.txt")
    assert {name: exact[name] for name in BOUNDS} == dict(line.split("==") for line in rest)


def test_uv_is_held_to_the_whole_set() -> None:
    exact = pins("constraints.txt")
    assert PYPROJECT["tool"]["uv"]["constraint-dependencies"] == [f"{n}=={v}" for n, v in exact.items()]
    for pin in map(Requirement, PYPROJECT["dependency-groups"]["dev"]):
        assert str(pin.specifier) == f"=={exact[pin.name.lower()]}", pin.name


def test_bounds_are_what_ci_tests() -> None:
    """From the lowest version to the newest and its fixes: below the next minor release."""
    lowest, exact = pins("constraints-lowest.txt"), pins("constraints.txt")
    assert set(lowest) == set(BOUNDS)
    for name, bound in BOUNDS.items():
        newest = Version(exact[name])
        below = f"{newest.major}.{newest.minor + 1}"
        assert bound.specifier == SpecifierSet(f">={lowest[name]},<{below}"), name
        assert lowest[name] in bound.specifier
        assert exact[name] in bound.specifier
    run = (ROOT / ".ci" / "run").read_text()
    assert "-r constraints-lowest.txt" in run
    assert "test_small_prune.py" in run


@pytest.mark.parametrize(("extra", "used_in"), [("grid", "grid/on_ray.py"), ("timm", "models/timm_nets.py")])
def test_an_extra_is_pinned_and_named_where_conda_users_look(extra: str, used_in: str) -> None:
    exact, page = pins("constraints.txt"), (ROOT / "docs" / "architecture.md").read_text()
    (bound,) = map(Requirement, PYPROJECT["project"]["optional-dependencies"][extra])
    newest = Version(exact[bound.name])
    assert bound.specifier == SpecifierSet(f">={newest},<{newest.major}.{newest.minor + 1}")
    assert f"# - {bound.name}=={newest}\n" in (ROOT / "conda.yaml").read_text()
    assert f"| {bound.name} (extra `{extra}`) |" in page
    assert f"import {bound.name}" in (ROOT / "rnp_mlflow" / used_in).read_text()


def test_every_dependency_is_imported_and_explained() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    sources = "\n".join(file.read_text() for file in (ROOT / "rnp_mlflow").rglob("*.py"))
    modules = {"pillow": "PIL", "scikit-learn": "sklearn"}
    for name in BOUNDS:
        assert re.search(rf"^\s*(from|import) {modules.get(name, name)}\b", sources, re.M), f"{name} is not used"
        assert f"| {name} |" in page, f"docs/architecture.md does not say why {name} is there"


def test_no_committed_file_names_the_host_of_a_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    hosts = "|".join(name.replace("_", r"\.") for name in ("pypi_org", "pythonhosted_org", "download.pytorch_org",
             "anaconda_org", "registry.npmjs_org", "unpkg_com", "jsdelivr_net"))  # fmt: skip
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert len(files) > 100
    found = [file.name for file in files if re.search(hosts, file.read_bytes().decode(errors="replace"))]
    assert found == []
    assert not (ROOT / "uv.lock").exists() or ROOT / "uv.lock" not in files


def test_metadata_says_who_and_that_it_is_typed() -> None:
    project = PYPROJECT["project"]
    assert project["authors"] == [{"name": "The rnp_mlflow developers"}]
    assert "Typing :: Typed" in project["classifiers"]
    assert (ROOT / "rnp_mlflow" / "py.typed").is_file()


@pytest.mark.slow
def test_the_wheel_prunes_in_an_empty_environment_from_an_empty_folder(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the path")
    home, python = tmp_path / "home", tmp_path / "env" / "bin" / "python"
    home.mkdir()

    def call(*words: str | Path) -> None:
        subprocess.run([uv, *words], cwd=ROOT, check=True, capture_output=True, timeout=600)

    call("build", "--wheel", "--quiet", "--out-dir", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    call("venv", "--quiet", "--python", sys.executable, tmp_path / "env")
    call("pip", "install", "--quiet", "--python", python, wheel, "-c", "constraints.txt")
    told = small.prune([str(python.with_name("rnp-mlflow"))], home)
    assert "\n  chosen: " in told
    assert {path.name for path in home.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlruns"}
    asked = "import rnp_mlflow, pathlib; print(pathlib.Path(rnp_mlflow.__file__).with_name('py.typed').is_file())"
    shown = subprocess.run([python, "-c", asked], cwd=home, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True"
