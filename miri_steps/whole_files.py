"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["replace", "to_disk"]


def replace(path: Path, fill: Callable[[Path], object]) -> None:
    """
    Write a file, and put it in the place of an older one only when it is whole.

    Parameters
    ----------
    path : Path
        The file.
    fill : callable
        Called with the name of a file beside it, to be written.

    Raises
    ------
    OSError
        If it cannot be written; `path` is as it was then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fill(temporary)
        to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """
    Wait until a file is on the disk: a power cut must not leave its name without its content.

    Parameters
    ----------
    path : Path
        The file.
    """
    with open(path, "rb") as file:
        os.fsync(file.fileno())
