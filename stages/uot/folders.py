"""Class folders of images, `<folder>/<class>/*`, as torchvision's ImageFolder orders them."""

from pathlib import Path

from stages.common.stage.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def list_images(folder: Path) -> tuple[list[str], list[str], list[int]]:
    """Class names in sorted order; files, sorted within each class; and the label of each file.

    Raises:
        InputError: the folder is missing, has no class folders, or one of them has no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    classes = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise InputError(
            f"{folder}: has no class folders; images are expected as {folder.name}/<class>/<image>"
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        mine = sorted(str(path) for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not mine:
            raise InputError(f"{folder / name}: has no images ({', '.join(sorted(SUFFIXES))})")
        files += mine
        labels += [label] * len(mine)
    return classes, files, labels
