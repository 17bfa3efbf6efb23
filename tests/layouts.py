"""Image folders as they come from outside: makers of the rows of the table in docs/images.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rnp_mlflow.data import sources

# What a maker gives: the call that reads what it made; and for a row that is taken a check of the result and the
# log, for one that is refused words that the error must hold.
Made = tuple[Callable[[], Any], Callable[[Any, str], None] | str]
Maker = Callable[[Path], Made]
MAKERS: dict[str, Maker] = {}

SIDE = 4


def layout(row: str) -> Callable[[Maker], Maker]:
    def add(maker: Maker) -> Maker:
        assert row not in MAKERS
        MAKERS[row] = maker
        return maker

    return add


def save(file: Path, value: int = 0, width: int = SIDE, height: int = SIDE) -> Path:
    """An image of one grey value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value,) * 3).save(file)
    return file


def fill(
    part: Path, classes: str | tuple[str, ...] = "ab", below: str = "", ending: str = "png", side: int = SIDE
) -> Path:
    """Two images a class; their grey value is ten times the class's place, and the image's number."""
    for place, name in enumerate(classes):
        for k in range(2):
            save(part / name / below / f"{k}.{ending}", 10 * place + k, side, side)
    return part


def values(images: Any) -> list[int]:
    """The first pixel of every image."""
    first: list[int] = images.images[:, 0, 0, 0].tolist()
    return first


def folder(root: Path, **settings: Any) -> Callable[[], Any]:
    return lambda: sources.load("folder", str(root), **settings)


def whole(data: Any, log: str = "") -> None:
    """Two classes with both parts, and not a word."""
    assert data.classes == ("a", "b")
    assert values(data.train) == values(data.test) == [0, 1, 10, 11]
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 0, 1, 1]
    assert log == ""


def alone(data: Any, log: str) -> None:
    assert values(data.train) == [0, 1, 10, 11]
    assert data.test is None
    assert log == ""


def whole_and(words: str) -> Callable[[Any, str], None]:
    """Both parts, and one line in the log that holds `words`."""

    def check(data: Any, log: str) -> None:
        whole(data)
        assert words in log
        assert log.count("\n") == 1

    return check


def both(root: Path) -> Path:
    fill(root / "train")
    fill(root / "test")
    return root


@layout("`train/CLASS/*` and `test/CLASS/*`")
def _(root: Path) -> Made:
    return folder(both(root)), whole


@layout("`train/CLASS/*` and `val/CLASS/*`")
def _(root: Path) -> Made:
    fill(root / "train")
    fill(root / "val")
    return folder(root), whole_and("val/ is the test part")


@layout("`train/`, `test/` and `val/`")
def _(root: Path) -> Made:
    fill(both(root) / "val", "abc")
    return folder(root), whole_and("left out val")


@layout("`train/CLASS/*` and images in `test/` without class folders")
def _(root: Path) -> Made:
    fill(root / "train")
    save(root / "test/7.png")

    def check(data: Any, log: str) -> None:
        alone(data, "")
        assert f"{root / 'test'}: left out, its images have no labels" in log

    return folder(root), check


@layout("`train/CLASS/*` alone")
def _(root: Path) -> Made:
    fill(root / "train")
    return folder(root), alone


@layout("`CLASS/*` alone")
def _(root: Path) -> Made:
    return folder(fill(root)), alone


@layout("`test/CLASS/*` without `train/`")
def _(root: Path) -> Made:
    fill(root / "test")
    return folder(root), "has test/ but no train/"


@layout("a class in `test/` alone")
def _(root: Path) -> Made:
    fill(both(root) / "test", "abc")
    return folder(root), "class 'c' has images in"


@layout("a class in `train/` alone")
def _(root: Path) -> Made:
    fill(both(root) / "train", "abc")
    return folder(root), "class 'c' is empty"


@layout("a class without images")
def _(root: Path) -> Made:
    (both(root) / "train/c").mkdir()
    return folder(root), "class 'c' is empty"


@layout("images in sub-folders of a class")
def _(root: Path) -> Made:
    fill(root / "train", below="deep/deeper")
    fill(root / "test", below="x")
    return folder(root), whole


NUMBERS = tuple(map(str, range(12)))


@layout("class folders that are numbers")
def _(root: Path) -> Made:
    def check(data: Any, log: str) -> None:
        assert data.classes == NUMBERS
        assert values(data.train)[::2] == [10 * k for k in range(12)]
        assert data.train.labels.tolist()[::2] == list(range(12))

    return folder(fill(root, NUMBERS)), check


@layout("class folders that are numbers, `class_order=text`")
def _(root: Path) -> Made:
    from torchvision.datasets import ImageFolder

    def check(data: Any, log: str) -> None:
        theirs = ImageFolder(str(root))
        assert list(data.classes) == theirs.classes
        assert data.classes[:4] == ("0", "1", "10", "11")
        assert [np.asarray(image)[0, 0, 0] for image, _ in theirs] == values(data.train)
        assert [label for _, label in theirs] == data.train.labels.tolist()

    return folder(fill(root, NUMBERS), class_order="text"), check


@layout("hidden files and folders")
def _(root: Path) -> Made:
    save(both(root) / "train/.cache/0.png")
    save(root / "train/a/.thumbs/0.png")
    (root / "train/a/._0.png").write_bytes(b"no image")
    (root / ".git").mkdir()
    return folder(root), whole_and("left out hidden files or folders (3,")


@layout("`__MACOSX` and `Thumbs.db`")
def _(root: Path) -> Made:
    save(both(root) / "__MACOSX/train/0.png")
    save(root / "train/__MACOSX/0.png")
    (root / "train/a/Thumbs.db").write_bytes(b"")
    return folder(root), whole


@layout("other files in a class folder")
def _(root: Path) -> Made:
    for k in range(3):
        (both(root) / f"train/a/GT-{k}.csv").write_text("Filename;Width\n")
    return folder(root), whole_and("left out files that are not images by their extension (3,")


@layout("images beside the class folders")
def _(root: Path) -> Made:
    save(both(root) / "train/9.png")
    return folder(root), whole_and("left out images outside of class folders (1,")


@layout("a link to a class folder")
def _(root: Path) -> Made:
    for part in ("train", "test"):
        fill(root / "set" / part)
        (root / "set" / part / "b").rename(root / f"{part}-b")
        (root / "set" / part / "b").symlink_to(root / f"{part}-b")
    return folder(root / "set"), whole


@layout("a link to a folder inside a class")
def _(root: Path) -> Made:
    fill(root / "elsewhere")
    (both(root / "set") / "train/a/more").symlink_to(root / "elsewhere")
    return folder(root / "set"), whole_and("left out symlinked folders inside a class (1,")


@layout("a link that leads nowhere")
def _(root: Path) -> Made:
    (both(root) / "train/a/2.png").symlink_to(root / "absent.png")
    return folder(root), "2.png is a dangling link"


def tiny(root: Path, table: str = "1.JPEG\tn2\t0\t0\t9\t9\n0.JPEG\tn1\t0\t0\t9\t9\n") -> Path:
    """Two classes; the second's training images are 100 and up, and the validation image 1 is the second's."""
    for place, name in enumerate(("n1", "n2")):
        save(root / "train" / name / "images/0.JPEG", 100 * place)
        (root / "train" / name / f"{name}_boxes.txt").write_text("0.JPEG\t0\t0\t9\t9\n")
    for k in range(2):
        save(root / f"val/images/{k}.JPEG", 50 * k)
    (root / "val/val_annotations.txt").write_text(table)
    save(root / "test/images/test_0.JPEG")
    (root / "wnids.txt").write_text("n1\nn2\n")
    return root


@layout("Tiny ImageNet as downloaded")
def _(root: Path) -> Made:
    def check(data: Any, log: str) -> None:
        assert (data.classes, data.mean) == (("n1", "n2"), (0.4802, 0.4481, 0.3975))
        assert (values(data.train), data.train.labels.tolist()) == ([0, 100], [0, 1])
        assert (values(data.test), data.test.labels.tolist()) == ([50, 0], [1, 0])
        assert "test: left out, its images have no labels" in log
        assert "val/ is the test part" in log
        assert "left out files that are not images by their extension (2," in log

    return lambda: sources.load("tiny", str(tiny(root))), check


@layout("Tiny ImageNet with `val/CLASS/images/*`")
def _(root: Path) -> Made:
    fill(root / "train", below="images", ending="JPEG")
    fill(root / "val", below="images", ending="JPEG")
    (root / "val/val_annotations.txt").write_text("0.JPEG\ta\n")  # left behind by those who sorted the images
    return folder(root), lambda data, log: whole(data)


@layout("a `val_annotations.txt` that names a file elsewhere")
def _(root: Path) -> Made:
    save(root / "secret.JPEG")
    tiny(root / "set", "../../../secret.JPEG\tn1\n")
    return folder(root / "set"), "is not the name of a file"


@layout("a `val_annotations.txt` that names a class unknown to `train/`")
def _(root: Path) -> Made:
    return folder(tiny(root, "0.JPEG\tn3\n")), "'n3' is not a class"


def signs(root: Path) -> Path:
    """GTSRB's own layout: classes of five digits, .ppm of many sizes, a csv beside them."""
    for part in ("train", "test"):
        for label in range(2):
            place = root / part / f"{label:05d}"
            for k in range(2):
                save(place / f"0000{k}.ppm", 100 * label + k, 5 + k, 6)
            (place / f"GT-{label:05d}.csv").write_text("Filename;Width;Height\n")
    return root


@layout("GTSRB's `train/00000/*.ppm` with `image_size`")
def _(root: Path) -> Made:
    def check(data: Any, log: str) -> None:
        assert (data.classes, data.train.shape) == (("00000", "00001"), (3, 8, 8))
        assert values(data.train) == [0, 1, 100, 101]
        assert log.count("left out files that are not images by their extension (2,") == 2

    return folder(signs(root), image_size=8), check


@layout("GTSRB's `train/00000/*.ppm` without `image_size`")
def _(root: Path) -> Made:
    return folder(signs(root)), "give image_size"


@layout("GTSRB's files as torchvision has them")
def _(root: Path) -> Made:
    home = root / "gtsrb"
    for label in range(2):
        place = home / "GTSRB/Training" / f"{label:05d}"
        sixteen = np.full((6, 5), 100 * label * 257, np.uint16)
        place.mkdir(parents=True)
        place.joinpath("0.ppm").write_bytes(b"P5 5 6 65535\n" + sixteen.astype(">u2").tobytes())
        save(home / f"GTSRB/Final_Test/Images/{label}.ppm", 50 * label, 7, 5)
    (home / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;0\n1.ppm;1\n")

    def check(data: Any, log: str) -> None:
        assert data.train.shape == data.test.shape == (3, 8, 8)
        assert (values(data.train), values(data.test)) == ([0, 100], [0, 50])
        assert data.test.labels.tolist() == [0, 1]
        assert sources.load("gtsrb", str(root)).train.shape == (3, 32, 32)

    return lambda: sources.load("gtsrb", str(root), image_size=8), check
