"""What many tasks need, which does not travel with each of them."""

import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from miri_steps import whole_files
from miri_steps.algorithms.sky_cells import Held, Kept

__all__ = ["Shared", "forget", "share"]


@dataclass(frozen=True)
class Shared:
    """
    Something in a scratch file that many tasks need.

    Parameters
    ----------
    path : Path
        The file.
    """

    path: Path

    def load(self) -> object:
        """Get it back; each process reads it once for tasks that follow one another."""
        return _unpickle(self.path)


def share(thing: object, folder: Path | None, name: str) -> Kept:
    """
    Put away what many tasks need, so that it does not travel with each.

    Parameters
    ----------
    thing : object
        What they need.
    folder : Path or None
        Folder for scratch files; None keeps it in memory.
    name : str
        Name of its file, which no other has.

    Returns
    -------
    Held or Shared
        With a method ``load``.
    """
    if folder is None:
        return Held(thing)
    path = folder / name
    whole_files.replace_scratch(path, lambda part: part.write_bytes(pickle.dumps(thing)))
    return Shared(path)


def forget() -> None:
    """Forget in this process what was read for tasks."""
    _unpickle.cache_clear()


@lru_cache(maxsize=4)
def _unpickle(path):
    return pickle.loads(path.read_bytes())
