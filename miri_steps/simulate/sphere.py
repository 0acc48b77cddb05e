"""Geometry on the sphere with plain arrays: unit vectors, attitudes, tangent planes.

A rigid rotation is one matrix product per pixel; evaluating the same through a chain of models takes fifty
times longer, and a mosaic has a million pixels per exposure.
"""

from __future__ import annotations

import numpy as np

ARCSEC = np.pi / 180.0 / 3600.0


def unit_vectors(lon: np.ndarray | float, lat: np.ndarray | float) -> np.ndarray:
    """Turn longitude and latitude [deg] into unit vectors, shape (..., 3)."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat) + 0 * lon], axis=-1)


def lon_lat(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn vectors (..., 3) into longitude 0..360 and latitude [deg]."""
    x, y, z = np.moveaxis(np.asarray(vectors), -1, 0)
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


def _turn(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def attitude(ra: float, dec: float, roll: float, v2: float = 0.0, v3: float = 0.0) -> np.ndarray:
    """Find the rotation that carries V2, V3 unit vectors to the sky.

    Parameters
    ----------
    ra, dec : float
        Where on the sky (v2, v3) points [deg].
    roll : float
        Position angle of V3 there, North through East [deg].
    v2, v3 : float
        Reference point [arcsec].

    Returns
    -------
    ndarray
        Matrix (3, 3): ``sky = matrix @ vector``.
    """
    to_sky = _turn(2, ra) @ _turn(1, -dec) @ _turn(0, -roll)
    return to_sky @ _turn(1, v3 / 3600.0) @ _turn(2, -v2 / 3600.0)


def decompose(matrix: np.ndarray, v2: float, v3: float) -> tuple[float, float, float]:
    """Undo `attitude`: ra, dec and roll [deg] of the rotation at the reference point (v2, v3) [arcsec]."""
    at_point = matrix @ _turn(2, v2 / 3600.0) @ _turn(1, -v3 / 3600.0)
    ra, dec = lon_lat(at_point[:, 0])
    rolled = _turn(1, float(dec)) @ _turn(2, -float(ra)) @ at_point
    roll = np.degrees(np.arctan2(rolled[1, 2], rolled[2, 2])) % 360.0
    return float(ra), float(dec), float(roll)


def fit_rotation(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Find the rotation that best carries vectors ``before`` (n, 3) onto ``after`` (least squares)."""
    u, _, vt = np.linalg.svd(after.T @ before)
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt


def tangent_basis(ra: float, dec: float) -> np.ndarray:
    """Give the unit vectors to the point, to East and to North there: rows of a matrix (3, 3)."""
    return (_turn(2, ra) @ _turn(1, -dec)).T


def to_tangent(vectors: np.ndarray, ra: float, dec: float) -> tuple[np.ndarray, np.ndarray]:
    """Project sky vectors (..., 3) to the tangent plane at ra, dec: East and North [arcsec]."""
    depth, east, north = np.moveaxis(vectors @ tangent_basis(ra, dec).T, -1, 0)
    return east / depth / ARCSEC, north / depth / ARCSEC


def from_tangent(east: np.ndarray, north: np.ndarray, ra: float, dec: float) -> np.ndarray:
    """Lift East, North [arcsec] in the tangent plane at ra, dec to sky vectors (..., 3), not normalised."""
    east, north = np.asarray(east) * ARCSEC, np.asarray(north) * ARCSEC
    return np.stack([np.ones_like(east), east, north], axis=-1) @ tangent_basis(ra, dec)


def offset(ra: float, dec: float, east: float, north: float) -> tuple[float, float]:
    """Move a position by East and North [arcsec] in its tangent plane; ra, dec in deg."""
    new_ra, new_dec = lon_lat(from_tangent(np.float64(east), np.float64(north), ra, dec))
    return float(new_ra), float(new_dec)


def position_angle(ra: float, dec: float, vector: np.ndarray) -> float:
    """Find the direction from ra, dec to a sky vector, North through East [deg]."""
    _, east, north = tangent_basis(ra, dec) @ vector
    return float(np.degrees(np.arctan2(east, north)))
