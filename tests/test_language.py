"""The words of the house: plain English in prose, the field's names in code, imperative docstrings.

`ROOMS` lists what is checked: phrases everywhere, names and docstrings in the package.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("rnp_mlflow", "docs", "README.md", "CONTRIBUTING.md")
# pattern → what to write instead
PHRASES = {
    r"so-manieth": "every N-th",
    r"(?<!there )\bis no (?!longer\b)": "is not a",
    r"\bwhere (there|it|they|neither|nothing|none|that) (is|are|has|have|differs?)\b": "if",
    r"\bsuch a share\b": "the fraction",
    r"\bby heart\b": "memorised",
    r"\bno whole\b": "truncated",
    r"\bwhich is no more\b": "which was removed",
    r"\bas (large|many|far|often|few) as can be\b": "as … as possible",
    r"\bthat (are|is) there\b": "existing",
    r"\b(is|are) held to\b": "is checked against",
    r"\b(speaks?|spoke) for\b": "supports, indicates",
    r"\bsays? nothing (of|about)\b": "does not show",
    r"\bfrom outside\b": "untrusted, of another tool",
    r"\b(is|are) (what they are|how they are) called\b": "is named",
    r"\b(turn|turned) by\b": "rotate by",
    r"\banew\b": "again",
}
# names that say too little → names that say more
NAMES = {
    "feed": "transform",
    "told": "the thing itself",
    "said": "the thing itself",
    "held": "holdout, values, actual",
    "asked": "requested",
    "ready": "the thing itself",
    "where": "location, path, context, mask",
    "what": "pattern, the thing itself",
    "room": "allocate, limit",
    "make": "build",
    "middle": "mean",
    "spread": "std",
    "bomb": "is_zip_bomb",
}
STORED = {("input_aware.py", "where"), ("input_aware.py", "what")}  # keys of a stored trigger: a file format
# first words of a docstring that is not imperative ("Whether …" is usual for a predicate)
NOT_IMPERATIVE = (
    "The",
    "A",
    "An",
    "What",
    "How",
    "Which",
    "Where",
    "Every",
    "Each",
    "All",
    "One",
    "Our",
    "Its",
    "None",
)


def files(suffix: str) -> list[Path]:
    found = [
        file for room in ROOMS for file in ([ROOT / room] if (ROOT / room).is_file() else (ROOT / room).rglob("*"))
    ]
    return sorted(file for file in found if file.suffix == suffix)


def package() -> list[Path]:
    return [file for file in files(".py") if file.is_relative_to(ROOT / "rnp_mlflow")]


def prose(file: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(file.read_text().splitlines(), 1)


@pytest.mark.parametrize("pattern", PHRASES)
def test_phrases_of_another_language_do_not_occur(pattern: str) -> None:
    places = [
        f"{file.relative_to(ROOT)}:{number}: write {PHRASES[pattern]!r}: {line.strip()[:100]}"
        for file in files(".py") + files(".md")
        for number, line in prose(file)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not places, "\n".join(places)


def defined(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that a file gives to functions, classes, parameters and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def test_names_say_what_they_name() -> None:
    places = [
        f"{file.relative_to(ROOT)}:{line}: {name}: write {NAMES[name]}"
        for file in package()
        for line, name in defined(ast.parse(file.read_text()))
        if name in NAMES and (file.name, name) not in STORED
    ]
    assert not places, "\n".join(places)


def test_docstrings_of_functions_are_imperative() -> None:
    places = []
    for file in package():
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            text = ast.get_docstring(node)
            if text and (text.split()[0] in NOT_IMPERATIVE or not text[0].isalpha()):
                places.append(f"{file.relative_to(ROOT)}:{node.lineno}: {text.splitlines()[0]}")
    assert not places, "\n".join(places)


def test_the_rules_find_what_they_are_for() -> None:
    """Sentences of the review that gave the rules, and correct ones that look like them."""
    bad = (
        "after every so-manieth epoch",
        "b.pt is no whole archive",
        "a name in it is no text",
        "0.5 where there are none",
        "held-out accuracy, such a share too",
        "knows its images by heart",
        "rerun of a run which is no more",
    )
    good = ("the file is no longer there", "there is no run 7", "torch.where(mask, a, b)", "where the images are")
    assert all(any(re.search(pattern, line) for pattern in PHRASES) for line in bad)
    assert not [line for line in good if any(re.search(pattern, line) for pattern in PHRASES)]
