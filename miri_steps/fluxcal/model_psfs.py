"""Model PSFs of stpsf, as growth curves are joined to them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from astropy.io import fits

from miri_steps import detector, whole_files
from miri_steps.fluxcal import config

__all__ = ["compute"]

# Samples per native pixel: an undersampled star needs a model that is not.
_OVERSAMPLE = 4
# The ring in which stars are compared with the model, in units of the radius of the join, and what is left
# free beyond it [native pixel].
_RING, _MARGIN = 1.4, 8.0
# Flux standards are measured beside the masks of coronagraphs. Half way, in x and y, between the centre of a
# mask, where its phase edges or its bar cross, and the edge of its square field the core and its first rings
# are far from all of these [arcsec].
_BESIDE = {"FQPM1065": 6.0, "FQPM1140": 6.0, "FQPM1550": 6.0, "LYOT2300": 7.5}
_MASKS = {"F1065C": "FQPM1065", "F1140C": "FQPM1140", "F1550C": "FQPM1550", "F2300C": "LYOT2300"}
# What optics and detector do, oversampled: distortion, scattering, charge diffusion.
_EXTENSION = "OVERDIST"
# What is kept of its header.
_KEYWORDS = (
    *("INSTRUME", "FILTER", "CORONMSK", "PUPIL", "APERNAME"),
    *("PIXELSCL", "OVERSAMP", "NORMALIZ", "WAVELEN", "OPD_FILE", "VERSION", "DATAVERS"),
)


def compute(bands: Iterable[str], folder: str | Path) -> dict[str, Path]:
    """
    Compute the PSF of filters with stpsf.

    Wavefront errors, stops and detector effects are those that stpsf has by default. All light that leaves
    the last stop is 1, so that what falls outside the image is not forgotten, and what stops take away is
    part of the filter's sensitivity. In coronagraphs the star is beside the mask, as flux standards are.

    Parameters
    ----------
    bands : iterable of str
        Names of the filters.
    folder : str or Path
        Where ``<band>.fits`` is written for each, to be read by `encircled.read_psf`; a file of this name is
        replaced when the new one is whole. The folder is made if it is not there.

    Returns
    -------
    dict
        The file of each filter.

    Raises
    ------
    ImportError
        If stpsf is not installed.
    FileNotFoundError
        If stpsf has no data.
    NotADirectoryError
        If the folder is a file.
    ValueError
        If a filter is none of MIRI's imager.

    References
    ----------
    Perrin et al. 2014, Proc. SPIE 9143, 91433X (doi:10.1117/12.2056689).
    """
    known, folder = [config.band(name) for name in bands], Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the folder for PSFs must not be a file, got {folder}")
    instrument = _instrument()
    folder.mkdir(parents=True, exist_ok=True)
    return {band.name: _write(instrument, band, folder / f"{band.name}.fits") for band in known}


def _instrument():
    """Find stpsf and its data."""
    try:
        import stpsf
    except ImportError as error:
        raise ImportError(
            "model PSFs are computed with stpsf, which is not installed: pip install 'miri-steps[stpsf]'"
        ) from error
    path = os.environ.get("STPSF_PATH", "")
    # Without a folder stpsf would fetch its data by itself.
    if not Path(path, "version.txt").is_file():
        raise FileNotFoundError(
            f"the environment variable STPSF_PATH must name the folder of stpsf's data, got '{path}': "
            "https://stpsf.readthedocs.io/en/stable/installation.html says where they are"
        )
    return stpsf.MIRI()


def _write(instrument, band, path):
    instrument.filter = band.name
    instrument.image_mask = _MASKS.get(band.name)
    # The mask is moved, not the star, which stays in the middle of the image.
    beside = _BESIDE.get(instrument.image_mask, 0.0)
    instrument.options.update(coron_shift_x=beside, coron_shift_y=beside)
    side = 2 * np.ceil(_RING * band.join + _MARGIN) * detector.PIXEL_SCALE
    psf = instrument.calc_psf(fov_arcsec=side, oversample=_OVERSAMPLE, normalize="exit_pupil")[_EXTENSION]
    image = fits.PrimaryHDU(psf.data)
    image.header.extend(card for card in psf.header.cards if card.keyword in _KEYWORDS)
    whole_files.replace(path, lambda temporary: image.writeto(temporary))
    return path
