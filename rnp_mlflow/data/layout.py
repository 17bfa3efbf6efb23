"""The layout of image folders: parts, classes, images, and the files that are skipped (docs/images.md)."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rnp_mlflow.data.pixels import has_image_extension
from rnp_mlflow.errors import DataError

log = logging.getLogger(__name__)

TRAIN, TEST, VALIDATION = "train", "test", ("val", "valid", "validation")
PART_WORDS = (TRAIN, "training", TEST, "testing", *VALIDATION)
IMAGES, TABLE = "images", "val_annotations.txt"  # Tiny ImageNet: CLASS/images/*; val/images/* and their table
SYSTEM = ("__MACOSX", "Thumbs.db", ".DS_Store", "desktop.ini")  # left by file managers; skipped without a warning


DEEPEST = 32  # folders below each other in a class
NOT_AN_IMAGE = "files that are not images by their extension"


class SkippedFiles:
    """Files in a part that are not read, collected for one line of the log."""

    def __init__(self) -> None:
        self.paths: defaultdict[str, list[Path]] = defaultdict(list)

    def add(self, kind: str, path: Path) -> None:
        if path.name not in SYSTEM:
            self.paths[kind].append(path)

    def log_summary(self, part: Path) -> None:
        """Log the skipped files, if any."""
        if self.paths:
            counts = [f"{kind} ({len(paths)}, the first is {paths[0]})" for kind, paths in self.paths.items()]
            log.warning(f"{part}: left out {'; '.join(counts)}")


def is_hidden(path: Path) -> bool:
    """Whether this is hidden (a leading dot, including macOS's ._*) or was left by a file manager."""
    return path.name.startswith(".") or path.name in SYSTEM


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders, including links to folders, sorted by name; hidden ones are skipped.

    Raises:
        DataError: a link is dangling, so a class would be missing.
    """
    found = sorted(path for path in folder.iterdir() if not is_hidden(path)) if folder.is_dir() else []
    for path in found:
        _check_link(path)
    return [path for path in found if path.is_dir()]


def find_parts(root: Path) -> tuple[Path, Path | None]:
    """Return the training part and the test part (None if there is none); skipped folders are logged.

    The test part is test/. If it is missing or has no labels, it is val/ (or valid/, validation/). Without train/, the
    classes are in `root` itself.

    Raises:
        DataError: there are folders named like parts, but no train/.
    """
    folders = {path.name: path for path in subfolders(root)}
    if TRAIN not in folders:
        if part := next((p for p in folders.values() if p.name.lower() in PART_WORDS and subfolders(p)), None):
            raise DataError(
                f"{root} has {part.name}/ but no {TRAIN}/: name the parts {TRAIN}/ and {TEST}/, or give {part} if "
                f"only its classes are meant"
            )
        return root, None
    train, test = folders[TRAIN], folders.get(TEST)
    validation = next((folders[name] for name in VALIDATION if name in folders), None)
    if test is not None and _has_no_labels(test, train):
        log.warning(f"{test}: left out, its images have no labels")
        test = None
    part = test or validation
    if part is not None and part is validation:
        log.warning(f"{root}: {part.name}/ is the test part, because no {TEST}/ with labels exists")
    others = [name for name, path in folders.items() if path not in (train, part, folders.get(TEST))]
    if others:
        read = f"{TRAIN}/ and {part.name}/" if part else f"{TRAIN}/"
        log.warning(f"{root}: only {read} {'are' if part else 'is'} read, left out {', '.join(others[:8])}")
    return train, part


def _has_no_labels(test: Path, train: Path) -> bool:
    """Whether test/ has no class folders: its images are directly in it, or in test/images/ (Tiny ImageNet)."""
    names = [path.name for path in subfolders(test)]
    return (names == [IMAGES] and not (train / IMAGES).is_dir()) or (not names and _holds_images(test))


def is_image_folder(root: Path) -> bool:
    """Whether `root` is an image folder (it has train/, or folders of images) and not torchvision's own files."""
    if not root.is_dir():
        return False
    return (root / TRAIN).is_dir() or any(_holds_images(p) or _holds_images(p / IMAGES) for p in subfolders(root))


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(
        not is_hidden(f) and has_image_extension(f) and f.is_file() for f in folder.iterdir()
    )


def class_names(part: Path, order: str = "number") -> tuple[str, ...]:
    """Return the class folders of `part`; the position of a class is its label.

    order: how to sort names that are all numbers: by "number", or as "text" like torchvision's ImageFolder
    (0, 1, 10, 2).

    Raises:
        DataError: `part` has no class folder.
    """
    names = [path.name for path in subfolders(part)]
    if not names:
        raise DataError(f"{part} has no class folder: an image folder is train/CLASS/ and test/CLASS/, or CLASS/ alone")
    numbers = order == "number" and all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numbers else names)


def list_files(part: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Return every image file below `part/CLASS`, class by class and sorted, and its label.

    Raises:
        DataError: a class is empty, `part` has a class that is not in `classes`, or a link is dangling.
    """
    files: list[Path] = []
    labels: list[int] = []
    skipped = SkippedFiles()
    _note_stray_files(part, skipped)
    for label, name in enumerate(classes):
        found = sorted(iter_images(part / name, skipped))
        if not found:
            raise DataError(f"class {name!r} is empty: no image in {part / name}")
        files += found
        labels += [label] * len(found)
    for folder in subfolders(part):
        if folder.name not in classes and any(iter_images(folder, SkippedFiles())):
            raise DataError(f"class {folder.name!r} has images in {part} but none in the training part")
    skipped.log_summary(part)
    return files, labels


def _note_stray_files(part: Path, skipped: SkippedFiles) -> None:
    """Note what `part` contains apart from class folders."""
    for path in sorted(part.iterdir()) if part.is_dir() else []:
        if is_hidden(path):
            skipped.add("hidden files or folders", path)
        elif path.is_file():
            skipped.add("images outside of class folders" if has_image_extension(path) else NOT_AN_IMAGE, path)


def iter_images(folder: Path, skipped: SkippedFiles) -> Iterator[Path]:
    """Yield the image files in a class folder and its subfolders; links to folders are not followed.

    Raises:
        DataError: a folder cannot be read, or is more than `DEEPEST` deep.
    """
    for parent, names, files in os.walk(folder, onerror=_unreadable):
        if len(Path(parent).relative_to(folder).parts) > DEEPEST:
            raise DataError(f"{folder} has folders more than {DEEPEST} deep")
        for name in sorted(names):
            path = Path(parent, name)
            if is_hidden(path):
                skipped.add("hidden files or folders", path)
                names.remove(name)
            elif path.is_symlink():
                skipped.add("symlinked folders inside a class", path)
        for name in sorted(files):
            path = Path(parent, name)
            if is_hidden(path):
                skipped.add("hidden files or folders", path)
            elif not has_image_extension(path):
                skipped.add(NOT_AN_IMAGE, path)
            elif path.is_file():
                yield path
            else:
                _check_link(path)
                skipped.add("things that are not files", path)


def _unreadable(error: OSError) -> None:
    # A missing class folder is reported as empty later, which is a clearer message.
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename} cannot be read: {error.strerror}")


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path} is a dangling link: restore its target, or delete it")


def has_table(part: Path, classes: tuple[str, ...]) -> bool:
    """Whether a table gives the classes of the images, as in Tiny ImageNet's val/ as downloaded."""
    return (part / TABLE).is_file() and IMAGES not in classes and _holds_images(part / IMAGES)


def list_table(part: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Return every image that `val_annotations.txt` names (file, tab, class, …), in its order, and its label.

    Raises:
        DataError: a file is outside the folder, missing, or named twice, or a class is not a training class.
    """
    table, found = part / TABLE, dict[Path, int]()
    for number, line in enumerate(table.read_text(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        path, label = part / IMAGES / name, rest.split("\t")[0].strip()
        if not line.strip():
            continue
        if Path(name).name != name or "\\" in name:
            raise DataError(f"{table}, line {number}: {name[:80]!r} is not the name of a file in {IMAGES}/")
        if label not in classes:
            raise DataError(f"{table}, line {number}: {label[:80]!r} is not a class of the training part")
        if path in found or not path.is_file():
            raise DataError(f"{table}, line {number}: {path} is {'named twice' if path in found else 'missing'}")
        found[path] = classes.index(label)
    skipped = SkippedFiles()
    for path in iter_images(part / IMAGES, skipped):
        if path not in found:
            skipped.add(f"images that {TABLE} does not name", path)
    skipped.log_summary(part)
    return list(found), list(found.values())
