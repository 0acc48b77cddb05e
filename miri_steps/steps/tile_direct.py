"""Measure a tile directly: the stars of all its exposures against a catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.time import Time
from gwcs import WCS
from stdatamodels.jwst.datamodels import JwstDataModel

from miri_steps import detector, exposures
from miri_steps.algorithms import directions, star_finding, star_matching
from miri_steps.algorithms.star_finding import Detections
from miri_steps.steps.reference_stars import ReferenceStars

__all__ = ["ExposureStars", "Image", "TileFit", "detect", "locate", "measure", "search", "take"]

# Pixels that the pipeline gives up are not used; the frame around the fields has no light.
_DQ_BITS = "~DO_NOT_USE+NON_SCIENCE"
# Positions of a star in two exposures differ less [FWHM, and arcsec]: exposures of a tile agree to a few
# milliarcseconds, so that noise and the undersampled image make the difference.
_MERGING, _LEAST_MERGING = 0.4, 0.06
# Beyond this the projection of a tile is of no use [deg].
_FAR = 5.0


@dataclass(frozen=True)
class Image:
    """
    The part of an exposure in which stars are looked for.

    Parameters
    ----------
    data, err : ndarray
        Image and its standard deviation, shape (ny, nx).
    mask : ndarray
        True where nothing is looked for, same shape.
    fwhm : float
        Width of a star at half maximum [pixel].
    """

    data: np.ndarray
    err: np.ndarray
    mask: np.ndarray
    fwhm: float


@dataclass(frozen=True)
class ExposureStars:
    """
    Stars of one exposure.

    Parameters
    ----------
    name : str
        The exposure.
    ra, dec : ndarray
        Positions under the WCS that they were asked for, ICRS, shape (n,) [deg].
    sigma : ndarray
        Standard errors along each axis [arcsec].
    x, y : ndarray
        Positions on the detector, 0-indexed [pixel].
    corners : ndarray
        Corners of the part of the frame that was searched, in order around it, shape (4, 2) [deg].
    fwhm : float
        Width of a star at half maximum [arcsec].
    """

    name: str
    ra: np.ndarray
    dec: np.ndarray
    sigma: np.ndarray
    x: np.ndarray
    y: np.ndarray
    corners: np.ndarray
    fwhm: float

    def __len__(self) -> int:
        """Count the stars."""
        return len(self.x)


@dataclass(frozen=True)
class TileFit:
    """
    What the stars of a tile say.

    Parameters
    ----------
    ra, dec : float
        Where the tangent plane touches the sky, the middle of the tile [deg].
    fit : Fit
        Shift and rotation on that plane, or why there are none.
    n_detected : int
        Different stars in the exposures.
    n_reference : int
        Stars of the catalogue on the tile.
    """

    ra: float
    dec: float
    fit: star_matching.Fit
    n_detected: int
    n_reference: int


def detect(
    model: JwstDataModel,
    *,
    wcs: WCS | None = None,
    snr: float = 10.0,
    fwhm: float | None = None,
) -> ExposureStars:
    """
    Find the stars of an exposure.

    Parameters
    ----------
    model : ImageModel
        The exposure; not changed.
    wcs : gwcs.WCS, optional
        From pixels to the sky; that of the exposure when not given.
    snr : float, optional
        Least signal-to-noise ratio of a star.
    fwhm : float, optional
        Width of a star at half maximum [pixel]; that of the filter when not given.

    Returns
    -------
    ExposureStars
        The stars; in full frames and subarrays of the imager those in its field, elsewhere all.

    Raises
    ------
    ValueError
        If the exposure has no WCS, or no `fwhm` is known for its filter.
    """
    wcs = wcs or model.meta.wcs
    if wcs is None:
        raise ValueError(f"{model.meta.filename} must have a WCS: run assign_wcs first")
    image = take(model, fwhm=fwhm)
    return locate(model, search(image, snr), wcs=wcs, fwhm=image.fwhm)


def take(model: JwstDataModel, *, fwhm: float | None = None) -> Image:
    """
    Take from an exposure what is needed to find its stars.

    Parameters
    ----------
    model : ImageModel
        The exposure; not changed.
    fwhm : float, optional
        Width of a star at half maximum [pixel]; that of the filter when not given.

    Returns
    -------
    Image
        Its arrays.

    Raises
    ------
    ValueError
        If no `fwhm` is known for its filter.
    """
    if fwhm is None:
        fwhm = _width(model.meta.filename, model.meta.instrument.filter)
    excluded = exposures.excluded_pixels(model, dqbits=_DQ_BITS)
    data, err = (np.asarray(plane, np.float32) for plane in (model.data, model.err))
    return Image(data, err, excluded | ~_searched(model), fwhm)


def search(image: Image, snr: float) -> Detections:
    """
    Find the stars of an image, wherever it looks.

    Parameters
    ----------
    image : Image
        The image.
    snr : float
        Least signal-to-noise ratio of a star.

    Returns
    -------
    Detections
        The stars.
    """
    data, err = image.data.astype(float), image.err.astype(float)
    return star_finding.find(data, err, mask=image.mask, fwhm=image.fwhm, snr=snr)


def locate(model: JwstDataModel, found: Detections, *, wcs: WCS, fwhm: float | None = None) -> ExposureStars:
    """
    Say where on the sky the stars of an exposure are.

    Parameters
    ----------
    model : ImageModel
        The exposure.
    found : Detections
        Its stars.
    wcs : gwcs.WCS
        From pixels to the sky.
    fwhm : float, optional
        Width of a star at half maximum [pixel]; that of the filter when not given.

    Returns
    -------
    ExposureStars
        The stars.
    """
    name = model.meta.filename
    if fwhm is None:
        fwhm = _width(name, model.meta.instrument.filter)
    ra, dec = wcs(found.x, found.y, with_bounding_box=False)
    sigma = found.sigma * detector.PIXEL_SCALE
    corners = _corners(wcs, _searched(model))
    return ExposureStars(
        name, np.array(ra), np.array(dec), sigma, found.x, found.y, corners, fwhm * detector.PIXEL_SCALE
    )


def _searched(model):
    """Find the field in which stars are: that of the imager where it is in the frame, or else all."""
    imager = exposures.region_pixels(model, ["imager"])
    return imager if imager.any() else np.broadcast_to(True, imager.shape)


def _width(name, band):
    if band not in detector.FWHM:
        raise ValueError(f"filter of {name} must be one of {list(detector.FWHM)}, got {band}")
    return detector.FWHM[band]


def _corners(wcs, searched):
    rows, columns = (np.flatnonzero(searched.any(axis=axis)) for axis in (1, 0))
    x, y = columns[[0, -1, -1, 0]].astype(float), rows[[0, 0, -1, -1]].astype(float)
    return np.stack(wcs(x, y, with_bounding_box=False), axis=-1)


def measure(
    detections: Sequence[ExposureStars],
    reference: ReferenceStars,
    *,
    date: float | Time,
    search_radius: float = 2.0,
    tolerance: float = 0.2,
    min_stars: int = 3,
    fitgeometry: str = "shift",
    sigma: float = 3.0,
) -> TileFit:
    """
    Measure where a tile is: one fit to the stars of all its exposures.

    Exposures of a tile agree with each other by themselves, so that every star needs to be seen in one or
    two of them only, and counts once.

    Parameters
    ----------
    detections : sequence of ExposureStars
        Stars of the exposures of a tile, in any order, all with uncorrected positions.
    reference : ReferenceStars
        The catalogue.
    date : float or Time
        When the tile was observed [MJD].
    search_radius, tolerance : float, optional
        Largest shift; largest distance of a star from its entry after it [arcsec].
    min_stars : int, optional
        Least number of matched stars.
    fitgeometry : {"shift", "rshift"}, optional
        "rshift" fits a rotation too, if there are enough stars.
    sigma : float, optional
        Clipping limit [rms of the residuals].

    Returns
    -------
    TileFit
        Correction, to be added to the positions, or the reason why there is none.

    Raises
    ------
    ValueError
        If there are no exposures or a parameter is out of range.

    See Also
    --------
    miri_steps.algorithms.star_matching.fit : The fit, and when it fails.
    """
    if not detections:
        raise ValueError("a tile must have at least 1 exposure, got 0")
    # By name, so that the order of exposures changes nothing, not even the last digit.
    detections = sorted(detections, key=lambda stars: stars.name)
    plane = exposures.sky_grid(np.concatenate([stars.corners for stars in detections]), 1.0)
    stars = _merge(detections, plane)
    entries = _near(_project(plane, *_around(plane, *reference.at(date))), detections, plane, search_radius)
    fit = star_matching.fit(
        stars,
        entries,
        search_radius=search_radius,
        tolerance=tolerance,
        min_stars=min_stars,
        fitgeometry=fitgeometry,
        sigma=sigma,
    )
    ra, dec = plane.wcs.crval
    return TileFit(float(ra), float(dec), fit, len(stars), len(entries))


def _project(plane, ra, dec):
    """Carry positions [deg] to East and North on the tangent plane, shape (n, 2) [arcsec]."""
    west, north = plane.wcs_world2pix(ra, dec, 0) if len(ra) else np.zeros((2, 0))
    return np.stack([-west, north], axis=-1)


def _around(plane, ra, dec):
    """Keep positions on this side of the sky."""
    outward, middle = (directions.local_axes(each)[2] for each in (np.stack([ra, dec], -1), plane.wcs.crval))
    near = outward @ middle > np.cos(np.radians(_FAR))
    return ra[near], dec[near]


def _near(entries, detections, plane, margin):
    """Keep entries of the catalogue on the tile or not much beyond its edges."""
    corners = np.concatenate([_project(plane, *stars.corners.T) for stars in detections])
    low, high = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    return entries[((entries >= low) & (entries <= high)).all(axis=1)]


def _merge(detections, plane):
    """Make one position of all detections of a star, and drop what moves with the detector."""
    positions = np.concatenate([_project(plane, stars.ra, stars.dec) for stars in detections])
    pixels = np.concatenate([np.stack([stars.x, stars.y], axis=-1) for stars in detections])
    sigma = np.concatenate([stars.sigma for stars in detections])
    exposure = np.repeat(np.arange(len(detections)), [len(stars) for stars in detections])
    radius = max(_LEAST_MERGING, _MERGING * max(stars.fwhm for stars in detections))
    stars = ~star_matching.fixed_to_detector(pixels, positions, exposure, radius=radius)
    covering = sum(_inside(positions, _project(plane, *each.corners.T)) for each in detections)
    return star_matching.merge(
        positions[stars], sigma[stars], exposure[stars], radius=radius, n_covering=covering[stars]
    )


def _inside(positions, corners):
    """Find the positions inside a convex polygon, shape (n,)."""
    edges = np.roll(corners, -1, axis=0) - corners
    to_point = positions[:, None, :] - corners
    side = edges[:, 0] * to_point[..., 1] - edges[:, 1] * to_point[..., 0]
    return ((side >= 0).all(axis=1) | (side <= 0).all(axis=1)).astype(int)
