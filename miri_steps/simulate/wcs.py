"""From pixels to the sky and back, as the pipeline's assign_wcs step has it.

`build` makes the gWCS that a file carries. The simulation itself evaluates the same geometry with arrays: the
distortion is tabulated once per filter, and pointing the telescope is one rotation of unit vectors.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import as_file, files

import asdf
import gwcs
import numpy as np
from astropy import coordinates, units
from astropy.modeling import bind_bounding_box, models
from gwcs import coordinate_frames, geometry

from miri_steps import detector
from miri_steps.simulate import sphere
from miri_steps.simulate.pointing import Pointing

# Reference pixel of each aperture (x, y), 0-indexed on the full frame: the middle of what it shows.
_REFERENCE_PIXELS = {
    "FULL": (692.5, 511.5),
    "BRIGHTSKY": (711.5, 305.5),
    "SUB256": (539.5, 177.5),
    "SUB128": (69.5, 951.5),
    "SUB64": (37.5, 809.5),
    "MASK1065": (119.0, 130.0),
    "MASK1140": (119.0, 356.0),
    "MASK1550": (119.0, 578.0),
    "MASKLYOT": (144.0, 865.0),
}


def _read_asdf(name: str) -> dict:
    with as_file(files("miri_steps.simulate") / "data" / name) as path, asdf.open(path, memmap=False) as tree:
        return dict(tree.tree)


@lru_cache(maxsize=1)
def _distortion_model() -> models.Mapping:
    return _read_asdf("jwst_miri_imager_distortion_flt9.asdf")["model"]


@lru_cache(maxsize=1)
def _filter_offsets() -> dict[str, tuple[float, float]]:
    rows = _read_asdf("jwst_miri_filteroffset_full_flt9.asdf")["filters"]
    return {row["filter"]: (row["column_offset"], row["row_offset"]) for row in rows}


def _shifted_distortion(filter_name: str) -> models.Mapping:
    """Distortion of one filter, full-frame pixels to V2, V3 [arcsec]."""
    column, row = _filter_offsets()[filter_name]
    return models.Shift(column) & models.Shift(row) | _distortion_model()


@lru_cache(maxsize=16)
def reference_point(subarray: str) -> tuple[float, float]:
    """Give V2, V3 [arcsec] of an aperture's reference point."""
    v2, v3 = _distortion_model()(*_REFERENCE_PIXELS[subarray])
    return float(v2), float(v3)


def build(pointing: Pointing, filter_name: str, subarray: str = "FULL") -> gwcs.WCS:
    """Build the gWCS of an exposure: detector, v2v3, v2v3vacorr, world.

    Parameters
    ----------
    pointing : Pointing
        Where the aperture's reference point looks.
    filter_name, subarray : str
        Names as in FILTER and SUBARRAY.

    Returns
    -------
    gwcs.WCS
        With a bounding box, like the one that assign_wcs attaches.
    """
    pixels, angle = (units.pix,) * 2, (units.arcsec,) * 2
    frame = coordinate_frames.Frame2D
    detector_frame = frame(name="detector", axes_order=(0, 1), unit=pixels)
    v2v3, corrected = (
        frame(name=name, axes_order=(0, 1), axes_names=("v2", "v3"), unit=angle)
        for name in ("v2v3", "v2v3vacorr")
    )
    world = coordinate_frames.CelestialFrame(reference_frame=coordinates.ICRS(), name="world")
    return gwcs.WCS(
        [
            (detector_frame, _to_v2v3(filter_name, subarray)),
            (v2v3, _velocity_aberration(pointing.va_scale, *reference_point(subarray))),
            (corrected, _to_sky(pointing, *reference_point(subarray))),
            (world, None),
        ]
    )


def _to_v2v3(filter_name: str, subarray: str) -> models.Mapping:
    window = detector.SUBARRAYS[subarray]
    transform = _shifted_distortion(filter_name)
    shifts = [models.Shift(n - 1) if n != 1 else models.Identity(1) for n in (window.xstart, window.ystart)]
    edges = ((-0.5, window.xsize - 0.5), (-0.5, window.ysize - 0.5))
    if window != detector.SUBARRAYS["FULL"]:
        transform = shifts[0] & shifts[1] | transform
    bind_bounding_box(transform, edges, order="F")
    return transform


def _velocity_aberration(scale: float, v2: float, v3: float) -> models.Mapping:
    """Scale about the reference point; tweakreg finds it by these names."""
    if scale == 1:
        return models.Identity(2)
    scaling = models.Scale(scale, name="dva_scale_v2") & models.Scale(scale, name="dva_scale_v3")
    shift = models.Shift((1 - scale) * v2, name="dva_v2_shift") & models.Shift(
        (1 - scale) * v3, name="dva_v3_shift"
    )
    transform = scaling | shift
    transform.name = "DVA_Correction"
    return transform


def _to_sky(pointing: Pointing, v2: float, v3: float) -> models.Mapping:
    angles = [v2 / 3600, -v3 / 3600, pointing.pa_v3, pointing.dec, -pointing.ra]
    transform = (
        models.Scale(1 / 3600) & models.Scale(1 / 3600)
        | geometry.SphericalToCartesian(wrap_lon_at=180)
        | models.RotationSequence3D(angles, axes_order="zyxyz")
        | geometry.CartesianToSpherical(wrap_lon_at=360)
    )
    transform.name = "v23tosky"
    return transform


# ---- the same with arrays ---------------------------------------------------------------------------------


def v2v3_vectors(v2: np.ndarray, v3: np.ndarray, scale: float, reference: tuple[float, float]) -> np.ndarray:
    """Turn V2, V3 [arcsec] into unit vectors, corrected for velocity aberration about the reference."""
    v2, v3 = (v * scale + (1 - scale) * ref for v, ref in zip((v2, v3), reference, strict=True))
    return sphere.unit_vectors(v2 / 3600.0, v3 / 3600.0)


@lru_cache(maxsize=2)
def _full_frame(filter_name: str) -> tuple[np.ndarray, np.ndarray]:
    """V2, V3 [arcsec] of every pixel of the full frame."""
    y, x = np.indices(detector.SHAPE, dtype=float)
    return _shifted_distortion(filter_name)(x, y)


@lru_cache(maxsize=2)
def pixel_vectors(filter_name: str, subarray: str, va_scale: float) -> np.ndarray:
    """Give the unit vector in V2, V3 of every pixel, shape (ny, nx, 3)."""
    window = detector.SUBARRAYS[subarray].slices
    v2, v3 = (plane[window] for plane in _full_frame(filter_name))
    return v2v3_vectors(v2, v3, va_scale, reference_point(subarray))


def pixels_to_v2v3(x: np.ndarray, y: np.ndarray, filter_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Carry 0-indexed full-frame pixel positions to V2, V3 [arcsec]."""
    return _shifted_distortion(filter_name)(np.asarray(x, float), np.asarray(y, float))


@lru_cache(maxsize=4)
def pixel_areas(filter_name: str) -> np.ndarray:
    """Find the area of every full-frame pixel on the sky [arcsec^2]."""
    v2, v3 = _full_frame(filter_name)
    (v2_y, v2_x), (v3_y, v3_x) = np.gradient(v2), np.gradient(v3)
    return np.abs(v2_x * v3_y - v2_y * v3_x)


def nominal_pixel_area(filter_name: str) -> float:
    """Mean area of the light-sensitive pixels [arcsec^2]: the keyword PIXAR_A2."""
    n = detector.N_REFERENCE_COLUMNS
    return float(pixel_areas(filter_name)[:, n:-n].mean())


def attitude(pointing: Pointing, subarray: str) -> np.ndarray:
    """Find the rotation from V2, V3 to the sky, shape (3, 3)."""
    return sphere.attitude(pointing.ra, pointing.dec, pointing.pa_v3, *reference_point(subarray))


def sky_to_pixels(
    sky: np.ndarray, pointing: Pointing, filter_name: str, subarray: str
) -> tuple[np.ndarray, np.ndarray]:
    """Find where sky unit vectors (n, 3) fall in the frame of a subarray.

    Positions far from the detector are only roughly right: the distortion is not known there.
    """
    reference, scale = reference_point(subarray), pointing.va_scale
    lon, lat = sphere.lon_lat(sky @ attitude(pointing, subarray))
    lon = (lon + 180.0) % 360.0 - 180.0
    target = [(v * 3600.0 - (1 - scale) * ref) / scale for v, ref in zip((lon, lat), reference, strict=True)]
    x, y = _invert_distortion(np.stack(target), filter_name)
    window = detector.SUBARRAYS[subarray]
    return x - (window.xstart - 1), y - (window.ystart - 1)


def _invert_distortion(target: np.ndarray, filter_name: str) -> np.ndarray:
    """Pixels (2, n) of V2, V3 (2, n) [arcsec]: Newton steps with the slope of the field's middle."""
    middle = np.array([515.5, 511.5])
    steps = np.array([middle, middle + [1, 0], middle + [0, 1]]).T
    corner = np.stack(pixels_to_v2v3(*steps, filter_name))
    slope = np.linalg.inv(corner[:, 1:] - corner[:, :1])
    guess = middle[:, None] + slope @ (target - corner[:, :1])
    for _ in range(12):
        # Outside this range the polynomials mean nothing and would only overflow.
        guess = np.clip(guess, -500.0, 1500.0)
        guess = guess + slope @ (target - np.stack(pixels_to_v2v3(*guess, filter_name)))
    return guess


# ---- what the header says ---------------------------------------------------------------------------------


def s_region(wcs: gwcs.WCS) -> str:
    """Write the footprint of the bounding box as S_REGION does."""
    corners = wcs.footprint(center=False, axis_type="spatial")
    return "POLYGON ICRS  " + " ".join(f"{value:.9f}" for value in np.ravel(corners))


def fits_wcs(wcs: gwcs.WCS) -> dict:
    """Describe a gWCS by FITS keywords with SIP polynomials, good to 0.01 pixel.

    Returns
    -------
    dict
        Keywords, lower case, as ``meta.wcsinfo`` holds them.
    """
    (x0, x1), (y0, y1) = wcs.bounding_box.bounding_box(order="F")
    header = wcs.to_fits_sip(
        max_pix_error=0.01,
        degree=range(1, 6),
        # The polynomials' own inverse is a little less exact over the full frame.
        max_inv_pix_error=0.03,
        inv_degree=range(1, 6),
        npoints=12,
        crpix=((x0 + x1) / 2 + 1, (y0 + y1) / 2 + 1),
    )
    skip = ("NAXIS", "COMMENT", "WCSNAME")
    return {key.lower(): _plain(header[key]) for key in header if not key.startswith(skip)}


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
