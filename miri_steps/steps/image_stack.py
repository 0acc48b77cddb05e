"""Images of many exposures, in memory or in a scratch file."""

from pathlib import Path

import numpy as np

__all__ = ["ImageStack"]


class ImageStack:
    """
    Images of one shape, written one by one and read by image or by rows.

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

    Notes
    -----
    The file is read and written in pieces, not mapped: pages of a mapped file count as memory.
    """

    def __init__(self, number: int, shape: tuple[int, int], dtype, path: Path | None = None):
        self.number, self.shape, self.dtype = number, shape, np.dtype(dtype)
        self._array = np.zeros((number, *shape), dtype) if path is None else None
        self._file = None if path is None else open(path, "w+b")
        if self._file is not None:
            self._file.truncate(number * shape[0] * shape[1] * self.dtype.itemsize)

    def close(self) -> None:
        """Give the memory back, or close the file."""
        self._array = None
        if self._file is not None:
            self._file.close()

    def image(self, k: int) -> np.ndarray:
        """Read image `k`, a new array of shape (ny, nx)."""
        if self._array is not None:
            return self._array[k].copy()
        return self._read(k, slice(0, self.shape[0]))

    def write(self, k: int, image: np.ndarray) -> None:
        """Write image `k`, shape (ny, nx)."""
        self.write_rows(k, slice(0, self.shape[0]), image)

    def rows(self, rows: slice) -> np.ndarray:
        """Read the same rows of all images, a new array of shape (number, rows, nx)."""
        if self._array is not None:
            return self._array[:, rows].copy()
        return np.stack([self._read(k, rows) for k in range(self.number)])

    def write_rows(self, k: int, rows: slice, piece: np.ndarray) -> None:
        """Write rows of image `k`, shape (rows, nx)."""
        if self._array is not None:
            self._array[k, rows] = piece
            return
        self._file.seek(self._place(k, rows))
        self._file.write(np.ascontiguousarray(piece, self.dtype))

    def _read(self, k, rows):
        piece = np.empty((rows.stop - rows.start, self.shape[1]), self.dtype)
        self._file.seek(self._place(k, rows))
        self._file.readinto(piece)
        return piece

    def _place(self, k, rows):
        return (k * self.shape[0] + rows.start) * self.shape[1] * self.dtype.itemsize
