"""Write the exact versions: constraints.txt, and from it pyproject.toml's list and conda.yaml's pins.

`python .ci/pin.py` keeps what is pinned and adds what is missing; `--upgrade` takes the newest versions that the
bounds in pyproject.toml allow. It needs uv. Run the whole check afterwards: other versions give other figures.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = re.compile(r"(?<=constraint-dependencies = \[\n)(?:    .*\n)*")
RENEW = "python .ci/pin.py --upgrade"


def compile_set(arguments: list[str]) -> None:
    """Resolve the project with its extras and its dev group for Python 3.11 into constraints.txt."""
    command = ["uv", "pip", "compile", "pyproject.toml", "--all-extras", "--group", "dev"]
    command += ["--python-version", "3.11", "--no-annotate"]
    command += ["--quiet", "--custom-compile-command", RENEW, "--output-file", "constraints.txt", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def pins() -> list[str]:
    """The lines NAME==VERSION of constraints.txt."""
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def rewrite(name: str, change: str | None = None) -> None:
    """Put the pins into pyproject.toml's list (`change` instead, if given) or conda.yaml's pip lines."""
    file = ROOT / name
    text = file.read_text()
    if name == "pyproject.toml":
        lines = "".join(f'    "{pin}",\n' for pin in pins()) if change is None else change
        text = LIST.sub(lambda _: lines, text)
    else:
        version = dict(pin.split("==") for pin in pins())
        text = re.sub(r"- ([\w-]+)==\S+", lambda found: f"- {found[1]}=={version[found[1]]}", text)
    file.write_text(text)


if __name__ == "__main__":
    rewrite("pyproject.toml", "")  # the list would bind the resolution that renews it
    try:
        compile_set(sys.argv[1:])
    finally:
        rewrite("pyproject.toml")
    rewrite("conda.yaml")
