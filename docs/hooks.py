"""What mkdocs adds to the pages: tables made from the code, and pages made from files elsewhere in the repository."""

import ast
import sys
from pathlib import Path
from typing import Any

import annotated_types
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rnp_mlflow import config as parameters  # noqa: E402
from rnp_mlflow.artifacts.table import ARTIFACTS  # noqa: E402

# Files of the repository that are pages too: as the pages link them → as the site does.
ELSEWHERE = {
    "../benchmarks/RESULTS.md": "matrix.md",
    "../benchmarks/TRIALS.md": "trials.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
}

MEANINGS = {
    "settings.json": "every setting of the run, the runs before it, and what the user gave",
    "model/model.safetensors": "the suspect's weights",
    "model/model.json": "its architecture, width, classes, input shape and normalisation",
    "data.json": "where the images are, and which of them",
    "poison_plan.json": "attack, target, poison rate, and the indices of the poisoned training images",
    "trigger.safetensors": "the trigger's tensors, if this project made it",
    "triggered.safetensors": "triggered images that were given",
    "unlearned_model/model.safetensors": "the unlearned model's weights",
    "unlearned_model/model.json": "as `model/model.json`",
    "defence_index.txt": "indices of the clean images that the defender has, one per line",
    "holdout_index.txt": "those of them that are held out",
    "verdict.json": "the suspected class, its share, and the other candidates",
    "proxy.safetensors": "the proxy: the stand-in for the trigger",
    "progress.csv": "ACC, ASR, RA and the proxy's success at a few moments of the step; what the stop rule saw",
    "mask_values.csv": "layer, neuron and mask value, in full precision",
    "pruning_curve.csv": "one row per point of the sweep; the unpruned model first",
    "pruning_curve.png": "the curve as a picture",
    "report.html": "the whole result as one page, to be read offline, printed and sent",
    "purified_model/model.safetensors": "the purified model's weights",
    "purified_model/model.json": "as `model/model.json`",
    "pruned_neurons.csv": "layer, neuron and mask value of each pruned neuron, in the order of pruning",
    "summary.json": "the figures before, and at each operating point; the verdict; layers; numbers of images",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere in the repository."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / "docs" / source).resolve().read_text()
        files.append(File.generated(config, page, content=text.replace("`../README.md`", "README")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the generated parts, and link pages as the site has them."""
    for name, make in GENERATED.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    for source, target in ELSEWHERE.items():
        markdown = markdown.replace(f"]({source}", f"]({target}")
    if page.file.src_uri in ELSEWHERE.values():
        markdown = markdown.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
    return markdown


def parameter_tables() -> str:
    """One section per group of settings, in the order of the steps: those that several steps share come first."""
    groups: dict[type[Any], list[str]] = {}
    steps: dict[str, type[parameters.Settings]] = {**parameters.STEPS, **parameters.OTHERS}
    for step, settings in steps.items():
        for group in reversed(settings.__mro__):
            if issubclass(group, parameters.Settings) and own(group):
                groups.setdefault(group, []).append(step)
    return "\n".join(section(group, steps) for group, steps in groups.items())


def preset_table() -> str:
    """One line for each parameter that a preset sets."""
    sets = {name: preset for name, preset in parameters.PRESETS.items() if preset}
    names = dict.fromkeys(name for preset in sets.values() for name in preset)
    defaults = parameters.parameters("main")
    head = [
        "| parameter | `default` | " + " | ".join(f"`{name}`" for name in sets) + " |",
        "|---|---" + "|---" * len(sets) + "|",
    ]
    rows = [
        " | ".join(
            [
                f"| `{name}`",
                *(f"`{parameters.text(v)}`" for v in (defaults[name].default, *(p[name] for p in sets.values()))),
            ]
        )
        + " |"
        for name in names
    ]
    return "\n".join([*head, *rows])


def own(group: type[Any]) -> list[str]:
    """The parameters that a group of settings declares itself."""
    above = {name for base in group.__bases__ if issubclass(base, parameters.Settings) for name in base.model_fields}
    return [name for name in group.model_fields if name not in above]


def section(group: type[Any], steps: list[str]) -> str:
    """Heading, first line of the docstring, and table of one group."""
    title = ", ".join(f"`{step}`" for step in steps)
    doc = (group.__doc__ or "").strip().splitlines()[0]
    rows = [row(name, group.model_fields[name]) for name in own(group)]
    head = ["| name | default | values | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", doc, "", *head, *rows, ""])


def row(name: str, field: FieldInfo) -> str:
    """One line of a table."""
    default = "required" if field.is_required() else f"`{parameters.text(field.default)}`"
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{name}` | {default} | {values(field)} | {meaning} |"


def values(field: FieldInfo) -> str:
    """What a parameter may be, in words."""
    if words := parameters.choices(field):
        return ", ".join(f"`{word}`" for word in words)
    annotation = str(field.annotation)
    kinds = {"tuple[int": "whole numbers, separated by commas", "tuple[float": "numbers, separated by commas"}
    kinds |= {"int": "whole number", "float": "number", "bool": "true or false", "str": "text"}
    kind = next((words for key, words in kinds.items() if key in annotation), annotation)
    if kind == "text" and "_absolute" in str(field.metadata):
        kind = "path"
    if "ge=1" in annotation:
        kind += " ≥ 1"
    return ", ".join([kind, *bounds(field)]) + (", or `auto`" if field.default is None else "")


def bounds(field: FieldInfo) -> list[str]:
    """The range of a number."""
    signs = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}
    found = []
    for part in field.metadata:
        for kind, sign in signs.items():
            if isinstance(part, kind):
                bound = getattr(part, kind.__name__.lower())
                found.append(f"{sign} {'2^63' if bound == 2**63 else f'{bound:g}'}")
    return found


def artifact_tables() -> str:
    """One table for each kind of run.

    Raises:
        PluginError: a file of the table has no meaning here.
    """
    parts = []
    for files in dict.fromkeys(ARTIFACTS.values()):
        entries = " and ".join(f"`{entry}`" for entry, own_files in ARTIFACTS.items() if own_files == files)
        parts += [f"### {entries}", "", "| file | what is in it | optional | compared |", "|---|---|---|---|"]
        for file in files:
            if file.path not in MEANINGS:
                raise PluginError(f"docs/hooks.py: MEANINGS does not say what is in {file.path}")
            flags = " | ".join("yes" if flag else "no" for flag in (file.optional, file.compared))
            parts.append(f"| `{file.path}` | {MEANINGS[file.path]} | {flags} |")
        parts.append("")
    return "\n".join(parts)


def rooms() -> dict[str, set[str]]:
    """room → rooms that it may import, from the test that holds the code to it."""
    tree = ast.parse((ROOT / "tests" / "test_interface.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ALLOWED":
            text = ast.unparse(node.value).replace("set()", "[]")
            return {room: set(needs) for room, needs in ast.literal_eval(text).items()}
    raise PluginError("docs/hooks.py: tests/test_interface.py has no table ALLOWED")


def room_arrows() -> str:
    """One line per room of ALLOWED: what it may import, without what that implies."""
    allowed = rooms()
    width = max(map(len, allowed))
    lines = []
    for room, needs in allowed.items():
        implied = {far for near in needs for far in allowed[near]}
        lines.append(f"{room:{width}} → {', '.join(sorted(needs - implied)) or 'nothing'}")
    return "\n".join(["```text", *lines, "```"])


GENERATED = {
    "parameters": parameter_tables,
    "presets": preset_table,
    "artifacts": artifact_tables,
    "rooms": room_arrows,
}
