"""Where an image folder keeps its parts, classes and images, and what of it is left out (docs/images.md)."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rnp_mlflow.data.pixels import has_image_ending
from rnp_mlflow.errors import DataError

log = logging.getLogger(__name__)

TRAIN, TEST, VALIDATION = "train", "test", ("val", "valid", "validation")
PART_WORDS = (TRAIN, "training", TEST, "testing", *VALIDATION)
IMAGES, TABLE = "images", "val_annotations.txt"  # Tiny ImageNet: CLASS/images/*; val/images/* and their table
SYSTEM = ("__MACOSX", "Thumbs.db", ".DS_Store", "desktop.ini")  # what file managers leave, not worth a word


class LeftOut:
    """What a part holds beside the images that are read, for one line of the log."""

    def __init__(self) -> None:
        self.found: defaultdict[str, list[Path]] = defaultdict(list)

    def add(self, kind: str, path: Path) -> None:
        if path.name not in SYSTEM:
            self.found[kind].append(path)

    def say(self, part: Path) -> None:
        """Log it, if there is anything."""
        if self.found:
            counts = [f"{kind} ({len(paths)}, the first is {paths[0]})" for kind, paths in self.found.items()]
            log.warning(f"{part}: left out {'; '.join(counts)}")


def is_hidden(path: Path) -> bool:
    """Whether this is never a class or an image: a leading dot (macOS's ._* too) or a file manager's own."""
    return path.name.startswith(".") or path.name in SYSTEM


def subfolders(place: Path) -> list[Path]:
    """The folders in `place`, links to folders among them, sorted by name; hidden ones left out.

    Raises:
        DataError: a link leads nowhere, so that a class would be missing.
    """
    found = sorted(path for path in place.iterdir() if not is_hidden(path)) if place.is_dir() else []
    for path in found:
        _check_link(path)
    return [path for path in found if path.is_dir()]


def parts(root: Path) -> tuple[Path, Path | None]:
    """The training part and the test part, if there is one; what is left out is said in the log.

    test/ is the test part; without it, or if its images have no labels, val/ (valid/, validation/) is. Without
    train/ the classes are in `root` itself.

    Raises:
        DataError: there are folders named like parts, and no train/.
    """
    folders = {path.name: path for path in subfolders(root)}
    if TRAIN not in folders:
        if part := next((p for p in folders.values() if p.name.lower() in PART_WORDS and subfolders(p)), None):
            raise DataError(
                f"{root} has {part.name}/ and no {TRAIN}/: name the parts {TRAIN}/ and {TEST}/, or give {part} for "
                f"its classes alone"
            )
        return root, None
    train, test = folders[TRAIN], folders.get(TEST)
    validation = next((folders[name] for name in VALIDATION if name in folders), None)
    if test is not None and _has_no_labels(test, train):
        log.warning(f"{test}: left out, its images have no labels")
        test = None
    part = test or validation
    if part is not None and part is validation:
        log.warning(f"{root}: {part.name}/ is the test part, as there is no {TEST}/ with labels")
    others = [name for name, path in folders.items() if path not in (train, part, folders.get(TEST))]
    if others:
        read = f"{TRAIN}/ and {part.name}/" if part else f"{TRAIN}/"
        log.warning(f"{root}: only {read} {'are' if part else 'is'} read, left out {', '.join(others[:8])}")
    return train, part


def _has_no_labels(test: Path, train: Path) -> bool:
    """Whether there is no class folder in test/: its images lie there, or in test/images/ as Tiny ImageNet's do."""
    names = [path.name for path in subfolders(test)]
    return (names == [IMAGES] and not (train / IMAGES).is_dir()) or (not names and _holds_images(test))


def is_classes(root: Path) -> bool:
    """Whether `root` is an image folder rather than a place of torchvision's files: train/, or folders of images."""
    if not root.is_dir():
        return False
    return (root / TRAIN).is_dir() or any(_holds_images(p) or _holds_images(p / IMAGES) for p in subfolders(root))


def _holds_images(place: Path) -> bool:
    return place.is_dir() and any(not is_hidden(f) and has_image_ending(f) and f.is_file() for f in place.iterdir())


def class_names(part: Path, order: str = "number") -> tuple[str, ...]:
    """The class folders of `part`; their position is the label.

    order: of names that are all numbers: by "number", or as "text" as torchvision's ImageFolder does (0, 1, 10, 2).

    Raises:
        DataError: there is none.
    """
    names = [path.name for path in subfolders(part)]
    if not names:
        raise DataError(f"{part} has no class folder: an image folder is train/CLASS/ and test/CLASS/, or CLASS/ alone")
    numbers = order == "number" and all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numbers else names)


def list_files(part: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Every image file below `part/CLASS`, class by class, sorted, and its label.

    Raises:
        DataError: a class is empty, `part` has one that is not among `classes`, or a link leads nowhere.
    """
    files: list[Path] = []
    labels: list[int] = []
    left = LeftOut()
    _look_beside(part, left)
    for label, name in enumerate(classes):
        found = sorted(images_below(part / name, left))
        if not found:
            raise DataError(f"class {name!r} is empty: no image in {part / name}")
        files += found
        labels += [label] * len(found)
    for folder in subfolders(part):
        if folder.name not in classes and any(images_below(folder, LeftOut())):
            raise DataError(f"class {folder.name!r} has images in {part} and none in the training part")
    left.say(part)
    return files, labels


def _look_beside(part: Path, left: LeftOut) -> None:
    """Note what is in `part` beside class folders."""
    for path in sorted(part.iterdir()) if part.is_dir() else []:
        if is_hidden(path):
            left.add("hidden files or folders", path)
        elif path.is_file():
            left.add("images outside of class folders" if has_image_ending(path) else NO_IMAGE, path)


NO_IMAGE = "files that are not images by their ending"


def images_below(folder: Path, left: LeftOut) -> Iterator[Path]:
    """The image files in a class folder and its sub-folders; links to folders in it are not followed."""
    for place, names, files in os.walk(folder, onerror=_unreadable):
        for name in sorted(names):
            path = Path(place, name)
            if is_hidden(path):
                left.add("hidden files or folders", path)
                names.remove(name)
            elif path.is_symlink():
                left.add("symlinked folders inside a class", path)
        for name in sorted(files):
            path = Path(place, name)
            if is_hidden(path):
                left.add("hidden files or folders", path)
            elif not has_image_ending(path):
                left.add(NO_IMAGE, path)
            elif path.is_file():
                yield path
            else:
                _check_link(path)
                left.add("things that are not files", path)


def _unreadable(error: OSError) -> None:
    # A class folder that is missing is found to be empty, which says more.
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename} cannot be read: {error.strerror}")


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path} is a link that leads nowhere")


def has_table(part: Path, classes: tuple[str, ...]) -> bool:
    """Whether a table says the classes of the images, as in Tiny ImageNet's val/ as downloaded."""
    return (part / TABLE).is_file() and IMAGES not in classes and _holds_images(part / IMAGES)


def list_table(part: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Every image that `val_annotations.txt` names (file, tab, class, …), in its order, and its label.

    Raises:
        DataError: a file leads out of the folder, is missing, or is named twice; a class is not a training class.
    """
    table, found = part / TABLE, dict[Path, int]()
    for number, line in enumerate(table.read_text(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        path, said = part / IMAGES / name, rest.split("\t")[0].strip()
        if not line.strip():
            continue
        if Path(name).name != name or "\\" in name:
            raise DataError(f"{table}, line {number}: {name[:80]!r} is not the name of a file in {IMAGES}/")
        if said not in classes:
            raise DataError(f"{table}, line {number}: {said[:80]!r} is not a class of the training part")
        if path in found or not path.is_file():
            raise DataError(f"{table}, line {number}: {path} is {'named twice' if path in found else 'missing'}")
        found[path] = classes.index(said)
    left = LeftOut()
    for path in images_below(part / IMAGES, left):
        if path not in found:
            left.add(f"images that {TABLE} does not name", path)
    left.say(part)
    return list(found), list(found.values())
