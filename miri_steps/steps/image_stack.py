"""Images of many exposures, in memory or in a scratch file that several processes work on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miri_steps.algorithms.sky_cells import Held

__all__ = ["FiledImage", "ImageStack"]

# Larger pieces begin at a page of their own, so that no two processes write to one.
_PAGE = 4096


class ImageStack:
    """
    Images of one shape, written one by one or by rows, and read by image or by rows.

    Parameters
    ----------
    number : int
        How many there are.
    shape : tuple of int
        Shape of each (ny, nx).
    dtype : dtype
        Their type.
    path : Path, optional
        File that holds them, made anew; not given, they stay in memory.
    step : int, optional
        Rows that are written at once, of all images, where they are not written image by image.

    Notes
    -----
    A stack in a file is sent to another process as its path. Each may write pieces that no other
    writes; the file is opened anew each time, so that what another has written is seen on network disks
    too. It is not mapped: pages of a mapped file count as memory.
    """

    def __init__(
        self, number: int, shape: tuple[int, int], dtype, path: Path | None = None, *, step: int | None = None
    ):
        self.number, self.shape, self.dtype, self.path = number, shape, np.dtype(dtype), path
        self.step = step or shape[0]
        size = self.step * shape[1] * self.dtype.itemsize
        # Bytes from image to image, and from one set of rows to the next.
        self._image = _whole_pages(size) if step is None else size
        self._set = _whole_pages(number * self._image)
        self._array = np.zeros((number, *shape), dtype) if path is None else None
        if path is not None:
            with open(path, "wb") as file:
                file.truncate(-(-shape[0] // self.step) * self._set)

    def close(self) -> None:
        """Give the memory back, or remove the file."""
        self._array = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def lend(self, k: int) -> "Held | FiledImage":
        """Say where another process finds image `k`, or send it along where it is in memory."""
        return FiledImage(self, k) if self._array is None else Held(self._array[k])

    def image(self, k: int) -> np.ndarray:
        """Read image `k`, a new array of shape (ny, nx)."""
        if self._array is not None:
            return self._array[k].copy()
        return self._read([k], slice(0, self.shape[0]))[0]

    def write(self, k: int, image: np.ndarray) -> None:
        """Write image `k`, shape (ny, nx)."""
        self.write_rows(k, slice(0, self.shape[0]), image)

    def rows(self, rows: slice) -> np.ndarray:
        """Read the same rows of all images, a new array of shape (number, rows, nx)."""
        if self._array is not None:
            return self._array[:, rows].copy()
        return self._read(range(self.number), rows)

    def write_rows(self, k: int, rows: slice, piece: np.ndarray) -> None:
        """Write rows of image `k`, shape (rows, nx)."""
        self._write([k], rows, [piece])

    def write_all(self, rows: slice, pieces: np.ndarray) -> None:
        """Write the same rows of all images, shape (number, rows, nx)."""
        self._write(range(self.number), rows, pieces)

    def _read(self, numbers, rows):
        pieces = np.empty((len(numbers), rows.stop - rows.start, self.shape[1]), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            for piece, k in zip(pieces, numbers, strict=True):
                for part, place in self._places(k, rows):
                    file.seek(place)
                    _transfer(file.readinto, piece[part])
        return pieces

    def _write(self, numbers, rows, pieces):
        if self._array is not None:
            for piece, k in zip(pieces, numbers, strict=True):
                self._array[k, rows] = piece
            return
        with open(self.path, "r+b", buffering=0) as file:
            for piece, k in zip(pieces, numbers, strict=True):
                for part, place in self._places(k, rows):
                    file.seek(place)
                    _transfer(file.write, np.ascontiguousarray(piece[part], self.dtype))

    def _places(self, k, rows):
        """Yield the parts of some rows of an image that lie together in the file, and where that is."""
        start = rows.start
        while start < rows.stop:
            number, first = divmod(start, self.step)
            stop = min(rows.stop, (number + 1) * self.step)
            place = number * self._set + k * self._image + first * self.shape[1] * self.dtype.itemsize
            yield slice(start - rows.start, stop - rows.start), place
            start = stop


@dataclass(frozen=True)
class FiledImage:
    """
    An image in a stack that is in a file.

    Parameters
    ----------
    stack : ImageStack
        The stack.
    k : int
        Which of its images.
    """

    stack: ImageStack
    k: int

    def load(self) -> np.ndarray:
        """Read it."""
        return self.stack.image(self.k)


def _whole_pages(size):
    """Round a number of bytes up to whole pages, unless it is less than one."""
    return size if size < _PAGE else -(-size // _PAGE) * _PAGE


def _transfer(function, array):
    """Read or write all bytes of an array, in as many turns as it takes."""
    view = memoryview(array).cast("B")
    while len(view):
        done = function(view)
        if not done:
            raise OSError(f"a scratch file must go on for {len(view)} bytes more, but has ended")
        view = view[done:]
