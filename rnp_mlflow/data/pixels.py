"""Image files as uint8 pixels: the only module that opens them. It also scales images that are already pixels."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rnp_mlflow.data.spill import allocate
from rnp_mlflow.errors import DataError
from rnp_mlflow.loading import check_regular

log = logging.getLogger(__name__)

# Only plain raster formats: for others Pillow starts programs (Ghostscript for EPS, whatever the file is named).
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
ORIENTATION = 274  # EXIF tag; 1: stored upright
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
MOST_PIXELS, LARGE = 50_000_000, 4_000_000  # of an image as it is stored; from the latter on, one is decoded at a time
LARGEST_SIDE = 4096  # of an image as the model takes it, as of `image_size`
SCALE_HINT = "give image_size=N to scale every image to N × N"


def has_image_extension(file: Path) -> bool:
    """Whether the file name has the extension of an image format that is read here."""
    return Image.registered_extensions().get(file.suffix.lower()) in FORMATS


def read_images(
    files: list[Path], size: int | None, grey: bool = False, scale: bool = True, like: Path | None = None
) -> Tensor:
    """Read images as uint8 (N, C, H, W), on disk if they are many; C is 3, or 1 if `grey`.

    size: H and W. Images of another size are scaled to it if `scale`, else refused before they are decoded.
    None: the size of `like` (default: the first file); every other size is refused.

    Raises:
        DataError: an image is broken, has a wrong size, or has a bit depth whose range is unknown.
    """
    sample = like or files[0]
    width, height = (size, size) if size else _size(sample)
    images = allocate(len(files), (1 if grey else 3, height, width))
    rotated = [False] * len(files)
    alone = threading.Lock()

    def read(index: int) -> None:
        file = files[index]
        with _open_image(file) as image:
            if image.size != (width, height):
                if size is None:
                    raise DataError(f"{file} is {_size_text(image.size)}, {sample} is {width} × {height}: {SCALE_HINT}")
                if not scale:
                    raise DataError(f"{file} is {_size_text(image.size)}, not {width} × {height}")
            with alone if prod(image.size) > LARGE else nullcontext():
                pixels = _resize(_to_eight_bit(image, file), (width, height), grey)
            rotated[index] = _has_orientation(image)
        images[index] = pixels

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(files))))
    if any(rotated):
        log.warning(
            f"{sum(rotated)} of {len(files)} images have an EXIF orientation, which is not applied (pixels are used "
            f"as stored); the first is {files[rotated.index(True)]}"
        )
    return torch.from_numpy(images)


def convert_images(images: Tensor, size: int | None, grey: bool) -> Tensor:
    """Scale uint8 (N, C, H, W) images, C 1 or 3, like image files, and reduce them to one channel if `grey`.

    size: of each side; None keeps H and W. Images that need no change are returned unchanged.
    """
    channels, *sides = images.shape[1:]
    height, width = (size, size) if size else sides
    if sides == [height, width] and not (grey and channels == 3):
        return images
    grey = grey or channels == 1
    found = allocate(len(images), (1 if grey else 3, height, width))
    for index, image in enumerate(images):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        found[index] = _resize(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), (width, height), grey)
    return torch.from_numpy(found)


@contextmanager
def _open_image(file: Path) -> Iterator[Image.Image]:
    """Open the image of a file without decoding it. Every exception that a broken file causes becomes a DataError."""
    check_regular(file, DataError)
    try:
        with Image.open(file, formats=FORMATS) as image:
            if prod(image.size) > MOST_PIXELS:
                raise DataError(
                    f"{file} is {_size_text(image.size)}, more than {MOST_PIXELS:,} pixels: make it smaller"
                )
            yield image
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file} is not an image that can be read: {str(error)[:160]}") from None


def _size(file: Path) -> tuple[int, int]:
    """Return width and height of an image, from its header."""
    with _open_image(file) as image:
        if max(image.size) > LARGEST_SIDE:
            raise DataError(f"{file} is {_size_text(image.size)}: {SCALE_HINT}, at most {LARGEST_SIDE}")
        return image.size


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _to_eight_bit(image: Image.Image, file: Path) -> Image.Image:
    """Convert the image to 8 bits per channel. Pillow's own conversion would clip deeper images to black or white.

    Pillow itself reads 16-bit colour as 8 bits per channel (the high byte), so only grey images arrive with more bits.
    """
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # a 16-bit PGM opens as I
    if image.mode in ("I", "F") and not deep:
        kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
        raise DataError(f"{file} holds {kind}, whose range is unknown: save it with 8 or 16 bits per channel")
    if not deep:
        return image
    values, top = np.asarray(image).astype(np.float64), 65535
    tags = getattr(image, "tag_v2", {})
    if tuple(tags.get(BITS_PER_SAMPLE, ())) == (12,):
        top = 4095
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow respects this tag only in 8-bit images
        values = top - values
    return Image.fromarray(np.round(values * 255 / top).clip(0, 255).astype(np.uint8))


def _resize(image: Image.Image, size: tuple[int, int], grey: bool) -> np.ndarray:
    """Return uint8 (C, H, W): grey or RGB, scaled bilinearly with antialiasing; the aspect ratio is not kept.

    size: W and H, as Pillow has them.
    """
    picture = image.convert("L" if grey else "RGB")
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _has_orientation(image: Image.Image) -> bool:
    """Whether a decoded image has an EXIF orientation that was not applied (Pillow applies a TIFF's itself)."""
    try:
        return image.getexif().get(ORIENTATION, 1) not in (0, 1)
    except Exception:  # a broken EXIF block does not affect the pixels
        return False
