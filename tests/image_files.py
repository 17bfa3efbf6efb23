"""Image files and arrays as they come from outside: the rest of the rows of docs/images.md (see layouts.py)."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from layouts import SIDE, Made, fill, folder, layout, save, values
from PIL import Image

from rnp_mlflow.data import sources, triggered


def pixels(count: int = 4, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def archive(root: Path, **arrays: np.ndarray) -> str:
    np.savez(root / "a.npz", allow_pickle=False, **arrays)
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
    return lambda: sources.load("npz", place), lambda data, log: check_equal(data.train.shape, (3, 6, 9))


@layout("npz of floating-point numbers")
def _(root: Path) -> Made:
    place = archive(root, x=pixels() / 255, y=LABELS)
    return lambda: sources.load("npz", place), "must be uint8"


@layout("npz: `x_train`, `y_train`, `x_val`, `y_val`")
def _(root: Path) -> Made:
    place = archive(root, x_train=pixels(), y_train=LABELS, x_val=pixels(), y_val=LABELS)

    def check(data: Any, log: str) -> None:
        assert data.test is not None
        assert "x_val is the test part" in log

    return lambda: sources.load("npz", place), check


@layout("npz with other arrays beside (`x_test` beside `x`)")
def _(root: Path) -> Made:
    place = archive(root, x=pixels(), y=LABELS, x_test=pixels(), y_test=LABELS)

    def check(data: Any, log: str) -> None:
        assert data.test is None
        assert "left out x_test, y_test" in log

    return lambda: sources.load("npz", place), check


@layout("npz with one-hot, floating-point or negative labels")
def _(root: Path) -> Made:
    place = archive(root, x=pixels(), y=np.eye(4)[LABELS])
    return lambda: sources.load("npz", place), "must be integers from 0, one per image"


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
    return folder(root), "0.tif holds signed or 32-bit integers, whose range is unknown: save it with 8 or 16 bits"


@layout("floating-point TIFF")
def _(root: Path) -> Made:
    single(root, Image.fromarray((DEEP / 65535).astype(np.float32)), "0.tif")
    return folder(root), "0.tif holds floating-point numbers, whose range is unknown: save it with 8 or 16 bits"


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


@layout("images that are not square, of one size")
def _(root: Path) -> Made:
    picture = Image.fromarray(pixels(1, 6, 9)[0])

    def check(data: Any, log: str) -> None:
        assert np.array_equal(data.train.images[0].permute(1, 2, 0).numpy(), np.asarray(picture))

    return folder(single(root, picture)), check


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
        assert f"1 of 2 images have an EXIF orientation, which is not applied (pixels are used as stored); the " \
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
    return known(fill(root, ("0", "1", "2", "3")), "4"), "others are numbers: give only one kind"


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
