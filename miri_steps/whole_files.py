"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

__all__ = ["replace", "replace_scratch", "to_disk"]


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
    with _in_place_of(path) as temporary:
        fill(temporary)
        to_disk(temporary)


def replace_scratch(path: Path, fill: Callable[[Path], object]) -> None:
    """
    Do the same to a scratch file, which need not outlast a power cut.

    Work on a cluster may be done twice, and at the same time: whoever reads the file must find it whole.

    Parameters
    ----------
    path : Path
        The file.
    fill : callable
        As in `replace`.
    """
    with _in_place_of(path) as temporary:
        fill(temporary)


@contextmanager
def _in_place_of(path):
    # Machines that share a disk have processes of the same number.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        yield temporary
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
