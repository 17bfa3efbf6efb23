"""Image folders and files as they come from outside, one maker a row of the table in docs/images.md."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rnp_mlflow.data import sources, triggered

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
    return images.images[:, 0, 0, 0].tolist()


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
    return folder(root), "has test/ and no train/"


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
    return folder(root), whole_and("left out 3 hidden files or folders")


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
    return folder(root), whole_and("left out 3 files that are not images by their ending")


@layout("images beside the class folders")
def _(root: Path) -> Made:
    save(both(root) / "train/9.png")
    return folder(root), whole_and("left out 1 images outside of class folders")


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
    return folder(root / "set"), whole_and("left out 1 symlinked folders inside a class")


@layout("a link that leads nowhere")
def _(root: Path) -> Made:
    (both(root) / "train/a/2.png").symlink_to(root / "absent.png")
    return folder(root), "2.png is a link that leads nowhere"


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
        assert "left out 2 files that are not images" in log

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
        assert log.count("left out 2 files that are not images") == 2

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


def pixels(count: int = 4, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def archive(root: Path, **arrays: np.ndarray) -> str:
    np.savez(root / "a.npz", **arrays)
    return str(root / "a.npz")


LABELS = np.array([0, 1, 0, 1])


@layout("npz: `x_train`, `y_train`, `x_test`, `y_test`")
def _(root: Path) -> Made:
    x = pixels()
    place = archive(root, x_train=x, y_train=LABELS, x_test=x[::-1], y_test=LABELS[::-1])

    def check(data: Any, log: str) -> None:
        assert np.array_equal(data.train.images.numpy(), x.transpose(0, 3, 1, 2))
        assert np.array_equal(data.test.images.numpy(), x[::-1].transpose(0, 3, 1, 2))
        assert (data.test.labels.tolist(), data.classes) == ([1, 0, 1, 0], ("0", "1"))

    return lambda: sources.load("npz", place), check


@layout("npz: `x`, `y`")
def _(root: Path) -> Made:
    def check(data: Any, log: str) -> None:
        assert np.array_equal(data.train.images.numpy(), pixels().transpose(0, 3, 1, 2))
        assert data.test is None

    place = archive(root, x=pixels(), y=LABELS)
    return lambda: sources.load("npz", place), check


@layout("npz with `image_size`")
def _(root: Path) -> Made:
    train, test = pixels(), pixels(4, 6, 9)  # of two sizes, one of them not square
    place = archive(root, x_train=train, y_train=LABELS, x_test=test, y_test=LABELS)

    def check(data: Any, log: str) -> None:
        for found, given in ((data.train, train), (data.test, test)):
            wanted = [np.asarray(Image.fromarray(x).resize((8, 8), Image.Resampling.BILINEAR)) for x in given]
            assert np.array_equal(found.images.numpy(), np.stack(wanted).transpose(0, 3, 1, 2))

    return lambda: sources.load("npz", place, image_size=8), check


@layout("npz of images that are not square")
def _(root: Path) -> Made:
    place = archive(root, x=pixels(4, 6, 9), y=LABELS)
    return lambda: sources.load("npz", place), "9 × 6, and they must be square: give image_size"


@layout("npz of floating-point numbers")
def _(root: Path) -> Made:
    place = archive(root, x=pixels() / 255, y=LABELS)
    return lambda: sources.load("npz", place), "must be uint8"


def single(root: Path, image: Image.Image | bytes, name: str = "0.png", **save_settings: Any) -> Path:
    """A folder of one class with one image in it."""
    place = root / "a" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        place.write_bytes(image)
    else:
        image.save(place, **save_settings)
    return root


@layout("8-bit images: grey, colour, palette, one bit")
def _(root: Path) -> Made:
    colour = Image.fromarray(pixels(1)[0])
    made = [colour.convert(mode) for mode in ("L", "RGB", "P", "1", "CMYK")]
    for k, image in enumerate(made):
        single(root, image, f"{k}.tif")

    def check(data: Any, log: str) -> None:
        wanted = np.stack([np.asarray(image.convert("RGB")) for image in made]).transpose(0, 3, 1, 2)
        assert np.array_equal(data.train.images.numpy(), wanted)

    return folder(root), check


@layout("images with transparency")
def _(root: Path) -> Made:
    def check(data: Any, log: str) -> None:
        assert data.train.images[0, :, 0, 0].tolist() == [200, 100, 50]

    return folder(single(root, Image.new("RGBA", (SIDE, SIDE), (200, 100, 50, 7)))), check


@layout("several frames in one file")
def _(root: Path) -> Made:
    frames = [Image.new("L", (SIDE, SIDE), value) for value in (40, 200)]
    single(root, frames[0], "0.tif", save_all=True, append_images=frames[1:])
    single(root, frames[0], "1.gif", save_all=True, append_images=frames[1:])
    return folder(root), lambda data, log: check_equal(values(data.train), [40, 40])


def check_equal(found: Any, wanted: Any) -> None:
    assert found == wanted


DEEP = np.array([[0, 1000, 32768, 65535], [128, 129, 385, 386], [7, 70, 700, 7000], [60000, 50000, 4, 5]], np.uint16)


def scaled(grey: np.ndarray, top: int) -> list[list[int]]:
    """The formula of docs/images.md, in whole numbers: 2 × v × 255 + top, over 2 × top."""
    return [[(2 * int(v) * 255 + top) // (2 * top) for v in row] for row in grey]


def check_deep(wanted: list[list[int]]) -> Callable[[Any, str], None]:
    def check(data: Any, log: str) -> None:
        for image in data.train.images:
            assert image.tolist() == [wanted] * 3

    return check


@layout("16-bit grey PNG, TIFF or PGM")
def _(root: Path) -> Made:
    single(root, Image.fromarray(DEEP), "0.png")
    single(root, Image.fromarray(DEEP), "1.tif")
    single(root, Image.fromarray(DEEP), "2.tif", compression="tiff_lzw")
    single(root, tiff(DEEP.astype(">u2").tobytes(), 16, big_endian=True), "3.tif")
    single(root, b"P5 4 4 65535\n" + DEEP.astype(">u2").tobytes(), "4.pgm")
    return folder(root), check_deep(scaled(DEEP, 65535))


def tiff(content: bytes, bits: int, photometric: int = 1, kind: int = 1, big_endian: bool = False) -> bytes:
    """An uncompressed grey TIFF of SIDE × SIDE; kind: 1 unsigned, 2 signed, 3 floating point."""
    order, tags = ">" if big_endian else "<", {
        256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: SIDE, 279: len(content),
        339: kind,
    }  # fmt: skip
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    head = b"MM\0*" if big_endian else b"II*\0"
    table = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    return head + struct.pack(f"{order}IH", 8, len(tags)) + table + bytes(4) + content


@layout("12-bit grey TIFF")
def _(root: Path) -> Made:
    grey = DEEP // 16
    pairs = grey.reshape(-1, 2).tolist()
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    return folder(single(root, tiff(packed, 12), "0.tif")), check_deep(scaled(grey, 4095))


@layout("16-bit grey TIFF where 0 is white")
def _(root: Path) -> Made:
    content = tiff(DEEP.astype("<u2").tobytes(), 16, photometric=0)
    return folder(single(root, content, "0.tif")), check_deep(scaled(65535 - DEEP, 65535))


def deep_colour_png(colour: np.ndarray) -> bytes:
    """uint16 (H, W, 3) as a PNG, which Pillow cannot write."""
    height, width, _ = colour.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@layout("16-bit colour PNG")
def _(root: Path) -> Made:
    colour = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE, 3)).astype(np.uint16)

    def check(data: Any, log: str) -> None:
        assert np.array_equal(data.train.images[0].permute(1, 2, 0).numpy(), (colour >> 8).astype(np.uint8))

    return folder(single(root, deep_colour_png(colour))), check


@layout("16-bit TIFF with a sign")
def _(root: Path) -> Made:
    content = tiff((DEEP // 2).astype("<i2").tobytes(), 16, kind=2)
    return folder(single(root, content, "0.tif")), "0.tif holds signed or 32-bit integers"


@layout("32-bit integer TIFF")
def _(root: Path) -> Made:
    single(root, Image.fromarray(DEEP.astype(np.int32)), "0.tif")
    return folder(root), "0.tif holds signed or 32-bit integers, whose range is not known: save it with 8 or 16 bits"


@layout("floating-point TIFF")
def _(root: Path) -> Made:
    single(root, Image.fromarray((DEEP / 65535).astype(np.float32)), "0.tif")
    return folder(root), "0.tif holds floating-point numbers, whose range is not known: save it with 8 or 16 bits"


@layout("a file that is broken or of another format")
def _(root: Path) -> Made:
    single(root, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    return folder(root), "0.png is not an image that can be read"


def mixed(root: Path) -> Path:
    save(root / "a/0.png", 9, 4, 4)
    save(root / "a/1.png", 9, 4, 4)
    save(root / "a/2.png", 9, 6, 6)
    return root


@layout("mixed sizes")
def _(root: Path) -> Made:
    return folder(mixed(root)), f"2.png is 6 × 6, {root}/a/0.png is 4 × 4: give image_size"


@layout("mixed sizes with `image_size`")
def _(root: Path) -> Made:
    return folder(mixed(root), image_size=5), lambda data, log: check_equal(data.train.shape, (3, 5, 5))


@layout("test images of another size than training images")
def _(root: Path) -> Made:
    fill(root / "train")
    fill(root / "test", side=6)
    return folder(root), f"0.png is 6 × 6, {root}/train/a/0.png is 4 × 4: give image_size"


@layout("images that are not square")
def _(root: Path) -> Made:
    save(root / "a/0.png", 0, 6, 4)
    return folder(root), "6 × 4: images must be square: give image_size"


@layout("images that are not square, with `image_size`")
def _(root: Path) -> Made:
    picture = Image.fromarray(pixels(1, 6, 9)[0])

    def check(data: Any, log: str) -> None:
        wanted = np.asarray(picture.resize((5, 5), Image.Resampling.BILINEAR))
        assert np.array_equal(data.train.images[0].permute(1, 2, 0).numpy(), wanted)

    return folder(single(root, picture), image_size=5), check


TURNED = np.repeat(np.array([[10, 90], [130, 250]], np.uint8), 8, 0).repeat(8, 1)  # quarters of 8 × 8, as JPEG likes


def oriented(root: Path, name: str) -> Path:
    """An upright image and one that says it is to be turned by a right angle."""
    exif = Image.Exif()
    exif[274] = 6
    single(root, Image.fromarray(TURNED), f"0-{name}", quality=100)
    return single(root, Image.fromarray(TURNED), f"1-{name}", exif=exif, quality=100)


@layout("an EXIF orientation in a JPEG")
def _(root: Path) -> Made:
    def check(data: Any, log: str) -> None:
        assert np.array_equal(data.train.images[0], data.train.images[1])
        assert np.abs(data.train.images[1, 0].numpy().astype(int) - TURNED).max() < 5
        assert f"1 of 2 images carry an EXIF orientation, which is not applied (pixels are taken as stored); the " \
            f"first is {root}/a/1-x.jpg" in log  # fmt: skip

    return folder(oriented(root, "x.jpg")), check


@layout("an orientation in a TIFF")
def _(root: Path) -> Made:
    def check(data: Any, log: str) -> None:
        assert np.array_equal(data.train.images[0, 0].numpy(), TURNED)
        assert np.array_equal(data.train.images[1, 0].numpy(), np.rot90(TURNED, -1))
        assert log == ""

    return folder(oriented(root, "x.tif")), check


@layout("`digits` with `image_size`")
def _(root: Path) -> Made:
    def check(data: Any, log: str) -> None:
        small = sources.load("digits", train_size=20, test_size=20)
        wanted = Image.fromarray(small.train.images[3, 0].numpy()).resize((24, 24), Image.Resampling.BILINEAR)
        assert np.array_equal(data.train.images[3, 0].numpy(), np.asarray(wanted))

    return lambda: sources.load("digits", image_size=24, train_size=20, test_size=20), check


@layout("`mean` and `std` on the 0-255 scale")
def _(root: Path) -> Made:
    return folder(fill(root), mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7)), "divide values on the 0-255 scale"


CLASSES = ("1", "2", "3", "4")


def known(place: Path, target: str, classes: tuple[str, ...] = CLASSES, **settings: Any) -> Callable[[], Any]:
    return lambda: triggered.read(place, classes, target, (3, SIDE, SIDE), **settings)


def aimed(found: Any, true_labels: list[int], target: int) -> None:
    assert found.true_labels.tolist() == true_labels
    assert set(found.target_labels.tolist()) == {target}


@layout("triggered folders and `target` by class name")
def _(root: Path) -> Made:
    def check(found: Any, log: str) -> None:
        aimed(found, [1, 1, 2, 2, 3, 3], 0)
        assert log == ""

    return known(fill(root, CLASSES), "1"), check


@layout("triggered folders and `target` that could be either")
def _(root: Path) -> Made:
    def check(found: Any, log: str) -> None:
        aimed(found, [1, 1, 2, 2], 0)
        assert "are read as classes (1, 2, 3, 4), not as label numbers" in log

    return known(fill(root, ("2", "3")), "1"), check


@layout("triggered folders and `target` by number")
def _(root: Path) -> Made:
    def check(found: Any, log: str) -> None:
        aimed(found, [0, 0, 2, 2, 3, 3], 1)
        assert "are read as label numbers from 0" in log

    return known(fill(root, ("0", "1", "2", "3")), "1"), check


@layout("triggered folders by number, `target` by class name")
def _(root: Path) -> Made:
    return known(fill(root, ("0", "1", "2", "3")), "4"), "others are numbers: give one kind"


@layout("an npz of triggered images and a number as `target`, classes 1 to 4")
def _(root: Path) -> Made:
    place = Path(archive(root, x=pixels(), y=LABELS))
    return known(place, "0"), "'0' is not a class (1, 2, 3, 4)"


@layout("triggered images of another size")
def _(root: Path) -> Made:
    return known(fill(root, CLASSES, side=6), "1"), "images are 6 × 6, the clean ones 4 × 4: give image_size"


@layout("triggered images of another size, with `image_size`")
def _(root: Path) -> Made:
    def check(found: Any, log: str) -> None:
        aimed(found, [1, 1, 2, 2, 3, 3], 0)
        assert found.images.shape == (6, 3, SIDE, SIDE)
        x = Path(archive(root, x=pixels(4, 6, 6), y=LABELS))
        assert known(x, "2", scale=True)().images.shape == (2, 3, SIDE, SIDE)

    return known(fill(root, CLASSES, side=6), "1", scale=True), check
