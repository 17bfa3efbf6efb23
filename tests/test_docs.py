"""README and docs: they build, their links lead somewhere, and their commands take what they say."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import rnp_mlflow
from rnp_mlflow import config
from rnp_mlflow.cli import ENTRIES, FLAGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
COMMAND = re.compile(r"(?:mlflow run |python -m rnp_mlflow |python -m benchmarks\.|rnp-mlflow ).*")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and the usual hosts make them."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", head)).strip().lower() for head in heads]
    return {re.sub(r" ", "-", head) for head in plain}


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every command of this project, from code blocks and from code in a sentence."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```$", text, re.M | re.S)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
        for line in lines:
            if found := COMMAND.search(line):
                yield page.name, found[0]


def given(words: list[str]) -> tuple[str, dict[str, str]]:
    """The entry point and the parameters of a command."""
    if words[0] == "mlflow":
        pairs = [words[k + 1].split("=", 1) for k, word in enumerate(words) if word == "-P"]
        entry = words[words.index("-e") + 1] if "-e" in words else "main"
        return entry, {pair[0]: pair[1] for pair in pairs}
    entry, *options = words[words.index("rnp_mlflow") + 1 :] if "rnp_mlflow" in words else words[1:]
    joined = " ".join(options).replace("=", " ").split()
    flags = {"--help", "--help-all", *(word for spellings, _ in FLAGS.values() for word in spellings)}
    names = [word.removeprefix("--") for word in joined if word.startswith("--") and word not in flags]
    values = [joined[joined.index(f"--{name}") + 1] for name in names]
    return entry, dict(zip(names, values, strict=True))


def test_readme_is_short_and_has_its_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert lines.count("pip install uv && uv run mlflow run . -e prune --env-manager local") == 1
    assert lines.count("pip install uv && uv run pytest") == 1


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is in the dev group")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    parameters = (tmp_path / "parameters" / "index.html").read_text()
    for entry in ENTRIES:
        for name in config.parameters(entry):
            assert f"<code>{name}</code>" in parameters, name
    for page in tmp_path.rglob("index.html"):
        assert "generated:" not in page.read_text(), page
    architecture = (tmp_path / "architecture" / "index.html").read_text()
    assert re.search(r"cli +→ steps\n", architecture), "the list of rooms"
    assert not (tmp_path / "hooks.py").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", prose(page)):
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), target
        assert place.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(place), target


def test_every_page_is_linked_from_the_readme_or_the_index() -> None:
    linked = "".join((ROOT / "README.md").read_text() + page.read_text() for page in DOCS.glob("*.md"))
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or page.name in linked, page
        assert page.name in (ROOT / "mkdocs.yml").read_text(), page


def test_there_are_commands_of_the_entry_points() -> None:
    found = {given(shlex.split(command))[0] for _, command in commands() if "benchmarks." not in command}
    assert {"attack", "import", "prune", "main", "rerun"} <= found


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_a_command_takes_what_it_is_given(page: str, command: str) -> None:
    words = shlex.split(command)
    if words[2:3] and words[2].startswith("benchmarks."):
        source = (ROOT / "benchmarks" / f"{words[2].split('.')[1]}.py").read_text()
        assert all(f'"{word}' in source for word in words if word.startswith("--")), command
        return
    entry, values = given(words)
    assert entry in ENTRIES
    assert values.keys() <= config.parameters(entry).keys(), values.keys() - config.parameters(entry).keys()
    if entry in config.OTHERS:
        config.parse(config.OTHERS[entry], ({"run_id": "RUN_ID"} if entry == "rerun" else {}) | values)
        return
    for step in config.steps_of(entry):
        config.parse(config.STEPS[step], values)


def test_parameters_and_values_in_sentences_exist() -> None:
    """`name=value` in a sentence is a parameter of that value."""
    known = {name for entry in ENTRIES for name in config.parameters(entry)}
    other = {"font", "type", "default", "RNP_SHARED"}
    for page in [page for page in PAGES if page.name != "CHANGELOG.md"]:
        for name, value in re.findall(r"`(?:-P |--)?([a-z_]+)=([^`\s]*)`", prose(page)):
            assert name in known | other, f"{page.name}: {name}"
            for settings in config.STEPS.values():
                if name in settings.model_fields and value and not value.isupper():
                    config.parse(settings, {name: value})


def test_python_on_the_page_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "python.md").read_text(), re.M | re.S)
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    images = torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8)
    names: dict[str, Any] = {"model": nn.Sequential(*layers), "images": images, "labels": torch.arange(24) % 3}
    exec(compile(block, "python.md", "exec"), names)
    assert names["result"].curve


def test_other_python_in_the_docs_is_python() -> None:
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S):
            ast.parse(block)


def test_the_changelog_and_the_citation_have_this_version() -> None:
    assert f"## [{rnp_mlflow.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == rnp_mlflow.__version__
    assert "2305.14876" in citation["references"][0]["identifiers"][0]["value"]


def test_the_workflow_calls_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["check"]["steps"][-1] == {"run": "bash .ci/run"}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    run = (ROOT / ".ci" / "run").read_text()
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]
    assert all(hook["entry"].removesuffix(" --fix") in run for hook in hooks)


def test_rooms_are_explained() -> None:
    page = (DOCS / "architecture.md").read_text()
    for place in (ROOT / "rnp_mlflow").iterdir():
        if not place.name.startswith("__") and place.name != "py.typed":
            assert f"| `{place.stem}` |" in page, place.stem
