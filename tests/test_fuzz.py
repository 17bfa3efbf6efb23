"""Seeded mutation of good files: whatever comes of it is read, or refused in one line of ours.

Each target has a good file of every form, and a pseudo-random generator that changes bytes, cuts, repeats and joins.
`RNP_FUZZ=SECONDS pytest -n0 tests/test_fuzz.py` goes on with other seeds for that long a target; `SEEDS` is then raised
above one that finds something. The standard library's generator suffices, so there is no further package to keep: the
files are small, and a seed and its target make a file again.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hostile_files as hostile
import hostile_torch
import numpy as np
import outside_files as files
import pytest
import torch
from safetensors.torch import save

from rnp_mlflow import loading
from rnp_mlflow.artifacts import poisoning, source
from rnp_mlflow.data import folder, npz
from rnp_mlflow.errors import RnpError
from rnp_mlflow.interop import backdoorbench, indices, masks
from rnp_mlflow.loading import pickles, stand_ins
from rnp_mlflow.models import store

SECONDS = float(os.environ.get("RNP_FUZZ", "0"))
SEEDS = 150  # of a target, from 0
# what follows an instruction, if not a name or a place in the memo
ARGUMENTS = {b"X": b"\2\0\0\0ab", b"U": b"\2ab", b"\x8a": b"\2\1\1", b"K": b"\1", b"M": b"\1\0", b"J": b"\1\0\0\0",
             b"G": bytes(8), b"\x80": b"\2", b"j": bytes(4), b"r": bytes(4)}  # fmt: skip
PIECES = (
    b"",
    b"\0" * 8,
    b"\xff" * 8,
    b"PK\1\2",
    b"PK\3\4",
    b"PK\5\6",
    b"2 ** 63",
    b"9" * 40,
    b"\x1b[2J",
    b"\x8a\xff",
    b".",
)
NAMES = tuple(hostile_torch.name(full) for full in ("os.system", "torch.load", *stand_ins.known_names()))


@cache
def good(kind: str) -> tuple[bytes, ...]:
    """Return files of a kind that are read."""
    home = Path(os.environ["RNP_FUZZ_HOME"])
    weights = {"conv.weight": torch.ones(2, 3), "bn.num_batches_tracked": torch.tensor(3)}
    beside = {"state_dict": weights, "epoch": 3, "n": np.arange(3), "best": np.float64(0.5), "args": {"lr": (1, 2.5)}}
    match kind:
        case "torch":
            torch.save(beside, home / "a")
            torch.save(beside, home / "b", _use_new_zipfile_serialization=False)
            return (home / "a").read_bytes(), (home / "b").read_bytes()
        case "attack_result":
            return ((files.attack_result(home)).read_bytes(),)
        case "pt2":
            return (hostile.pt2(home / "a", hostile.config(1)).read_bytes(),)
        case "safetensors":
            return (save(weights),)
        case "npz":
            files.clean_npz(home / "a.npz")
            hostile.npz(home / "b.npz", hostile.PIXEL)
            return (home / "a.npz").read_bytes(), (home / "b.npz").read_bytes()
        case "image":
            hostile.picture(home / "a.png")
            return ((home / "a.png").read_bytes(), b"P6 2 2 255 " + bytes(12), b"P5 1 1 255 a")
        case "mask":
            return (
                b"layer,index,value\nnorm,0,0.5\nnorm,1,1.0\n",
                b"No \t Layer Name \t Neuron Idx \t Mask Score \n0 \t norm \t 0 \t 0.5 \n",
            )
        case "indices":
            return (b"0\n1\n2\n3\n",)
        case "spec":
            store.write_spec(home / "a", files.spec())
            return ((home / "a").read_bytes(),)
        case "plan":
            return (b'{"attack": "badnet", "target": 0, "label_mode": null, "poison_rate": 0.1, "triggered": null}',)
        case _:
            source.write(home, source.Source("folder", "/x", mean=(0.5,), std=(0.5,)))
            return ((home / "data.json").read_bytes(),)


READERS: dict[str, Callable[[Path], object]] = {
    "torch": loading.read_checkpoint,
    "attack_result": backdoorbench.read,
    "pt2": loading.read_checkpoint,
    "safetensors": loading.read_checkpoint,
    "npz": npz.read,
    "image": lambda place: folder.read_images([place], 8),
    "mask": masks.parse,
    "indices": lambda place: indices.read(place, torch.tensor([0, 0, 1, 1])),
    "spec": store.read_spec,
    "plan": poisoning.read,
    "source": source.read,
}


def mutated(content: bytes, pick: random.Random) -> bytes:
    """Change a file in one to eight places."""
    for _ in range(pick.randint(1, 8)):
        at, to = sorted(pick.randint(0, len(content)) for _ in range(2))
        to = min(to, at + pick.choice((1, 4, 64, 10**6)))
        piece = pick.choice(
            (pick.choice(PIECES), pick.randbytes(pick.randint(1, 8)), content[at:to] * 2, pick.choice(NAMES))
        )
        keep = pick.random() < 0.5 and len(piece) <= len(content) - at  # the same length, so that offsets stay true
        content = content[:at] + piece + content[at + len(piece) if keep else to :]
    return content


def check(read: Callable[[], object], made_by: str) -> str:
    """Return the message of the error that reading ends with, empty if none."""
    line = ""
    try:
        read()
    except RnpError as error:
        line = str(error)
    except Exception as error:
        raise AssertionError(made_by) from error
    assert not line or line.isprintable(), made_by
    return line


def seeds(count: int) -> Iterator[int]:
    """Yield the seeds of the repository, and others while `SECONDS` last."""
    end, seed = time.monotonic() + SECONDS, 0
    while seed < count or time.monotonic() < end:
        yield seed
        seed += 1


@pytest.mark.parametrize("kind", READERS)
def test_a_changed_file_is_read_or_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNP_FUZZ_HOME", str(tmp_path))
    good.cache_clear()
    read, file = READERS[kind], tmp_path / "x"
    for content in good(kind):
        file.write_bytes(content)
        assert not check(lambda: read(file), f"{kind}, as it is")
    refused = 0
    for seed in seeds(SEEDS):
        pick = random.Random(f"{kind} {seed}")
        file.write_bytes(mutated(pick.choice(good(kind)), pick))
        refused += bool(check(lambda: read(file), f"{kind}, seed {seed}"))
    assert refused > SEEDS / 5


def program(pick: random.Random) -> bytes:
    """Return a pickle of instructions at random, whose arguments are mostly whole."""
    found, index = b"", pick.randint(0, 3)
    for _ in range(pick.randint(1, 60)):
        code, memo = pick.choice([*pickles.OPERATIONS]), bytes([index])
        found += code + (ARGUMENTS | {b"c": pick.choice(NAMES)[1:], b"h": memo, b"q": memo}).get(code, b"")
    return found


def test_a_pickle_of_any_instructions_is_read_or_refused(tmp_path: Path) -> None:
    for seed in seeds(5 * SEEDS):
        hostile_torch.archive(tmp_path / "w.pt", program(random.Random(seed)))
        check(lambda: loading.read_torch(tmp_path / "w.pt"), f"seed {seed}")
