"""Directions on the sphere as unit vectors."""

import numpy as np

__all__ = ["local_axes"]


def local_axes(position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Find the directions to the East, to the North and outwards at places on the sky.

    Parameters
    ----------
    position : ndarray
        Right ascensions and declinations, shape (..., 2) [deg].

    Returns
    -------
    east, north, outward : ndarray
        Unit vectors, each of shape (..., 3). At the poles East is where the right ascension says.
    """
    ra, dec = np.radians(np.moveaxis(np.asarray(position, float), -1, 0))
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
    north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
    return east, north, np.cross(east, north)
