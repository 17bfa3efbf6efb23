"""Image files as uint8 pixels: the one place that opens them. Also the scaling of images that are pixels already."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rnp_mlflow.data.spill import room
from rnp_mlflow.errors import DataError

log = logging.getLogger(__name__)

# Plain raster formats alone: for others Pillow starts programs (Ghostscript for EPS, under any file name).
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
ORIENTATION = 274  # EXIF tag; 1: stored upright
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
HOW_TO_SCALE = "give image_size=N to scale every image to N × N"


def has_image_ending(file: Path) -> bool:
    """Whether the name ends like those of the image formats that are read here."""
    return Image.registered_extensions().get(file.suffix.lower()) in FORMATS


def read_images(
    files: list[Path], size: int | None, grey: bool = False, scale: bool = True, like: Path | None = None
) -> Tensor:
    """uint8 (N, C, side, side), on disk if they are many; C is 3, or 1 for `grey`.

    size: the side. Images of another size are scaled to it, or refused before they are decoded if not `scale`.
    None: the side of `like` (by default of the first file), and every other size is refused.

    Raises:
        DataError: an image is broken, of a wrong size, or of a depth whose range is unknown.
    """
    sample = like or files[0]
    side = size or _side(sample)
    images = room(len(files), (1 if grey else 3, side, side))
    turned = [False] * len(files)

    def read(place: int) -> None:
        file = files[place]
        with _opened(file) as image:
            if size is None:
                _check_same(file, image.size, sample, side)
            elif not scale and image.size != (side, side):
                raise DataError(f"{file} is {_text(image.size)}, not {side} × {side}")
            pixels = _resized(_eight_bit(image, file), side, grey)
            turned[place] = _is_turned(image)
        images[place] = pixels

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(files))))
    if any(turned):
        log.warning(
            f"{sum(turned)} of {len(files)} images carry an EXIF orientation, which is not applied (pixels are taken "
            f"as stored); the first is {files[turned.index(True)]}"
        )
    return torch.from_numpy(images)


def converted(images: Tensor, size: int | None, grey: bool, where: str) -> Tensor:
    """uint8 (N, C, H, W) images, C 1 or 3, scaled like those of files and, for `grey`, made one channel.

    where: what they are called in an error. Images that are as wanted are given back as they are.

    Raises:
        DataError: they are not square, and no size is given.
    """
    channels, height, width = images.shape[1:]
    if size is None and height != width:
        raise DataError(f"{where}: images are {width} × {height}, and they must be square: {HOW_TO_SCALE}")
    side = size or height
    if (height, width) == (side, side) and not (grey and channels == 3):
        return images
    grey = grey or channels == 1
    found = room(len(images), (1 if grey else 3, side, side))
    for place, image in enumerate(images):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        found[place] = _resized(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), side, grey)
    return torch.from_numpy(found)


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """The image of a file, not decoded yet. Whatever a broken file makes of the reader is a DataError."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file} is not an image that can be read: {str(error)[:160]}") from None


def _side(file: Path) -> int:
    """Width and height of a square image, from its header."""
    with _opened(file) as image:
        _check_square(file, image.size)
        return image.size[0]


def _check_square(file: Path, size: tuple[int, int]) -> None:
    if size[0] != size[1]:
        raise DataError(f"{file} is {_text(size)}: images must be square: {HOW_TO_SCALE}")


def _check_same(file: Path, size: tuple[int, int], sample: Path, side: int) -> None:
    _check_square(file, size)
    if size[0] != side:
        raise DataError(f"{file} is {_text(size)}, {sample} is {side} × {side}: {HOW_TO_SCALE}")


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _eight_bit(image: Image.Image, file: Path) -> Image.Image:
    """The image with 8 bits a channel. Pillow's own conversion would clip deeper ones to black or white.

    Pillow reads 16-bit colour as 8 bits a channel (the high byte) by itself; only deep grey images arrive as such.
    """
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # a 16-bit PGM opens as I
    if image.mode in ("I", "F") and not deep:
        kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
        raise DataError(f"{file} holds {kind}, whose range is not known: save it with 8 or 16 bits a channel")
    if not deep:
        return image
    values, top = np.asarray(image).astype(np.float64), 65535
    tags = getattr(image, "tag_v2", {})
    if tuple(tags.get(BITS_PER_SAMPLE, ())) == (12,):
        top = 4095
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow minds in 8-bit images alone
        values = top - values
    return Image.fromarray(np.round(values * 255 / top).clip(0, 255).astype(np.uint8))


def _resized(image: Image.Image, side: int, grey: bool) -> np.ndarray:
    """uint8 (C, side, side): one channel or RGB, then scaled (bilinear, with antialiasing), squeezed if not square."""
    picture = image.convert("L" if grey else "RGB")
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _is_turned(image: Image.Image) -> bool:
    """Whether a decoded image says that it is to be turned. (Pillow has turned a TIFF by then.)"""
    try:
        return image.getexif().get(ORIENTATION, 1) not in (0, 1)
    except Exception:  # a broken EXIF block says nothing, and the pixels are sound
        return False
