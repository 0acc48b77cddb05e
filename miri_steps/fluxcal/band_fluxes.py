"""Fluxes of stars in filters, from spectra of models and throughput curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable, Table
from synphot import Observation, SourceSpectrum, SpectralElement
from synphot.exceptions import SynphotError
from synphot.models import Empirical1D

__all__ = ["band_flux", "covers", "read_spectrum", "read_throughput", "tabulate"]

# Names of columns that files of throughput curves and spectra have in practice.
_WAVELENGTHS = "wavelength", "wave", "wave_um", "lambda"
_THROUGHPUTS = "throughput", "bandpass", "transmission", "pce"
# Spectra and throughput curves without units are in these.
_PLAIN = u.AA
# A throughput curve ends where less than this part of it is left.
_NEGLIGIBLE = 1e-3
# Points that a throughput curve is integrated on, at least.
_FINE = 2000


def read_spectrum(path: str | Path) -> SourceSpectrum:
    """
    Read the spectrum of a star, as CALSPEC distributes them.

    Parameters
    ----------
    path : str or Path
        FITS table with WAVELENGTH and FLUX, or text with two columns in Angstrom and erg/s/cm2/Angstrom.

    Returns
    -------
    SourceSpectrum
        The spectrum.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no spectrum.
    """
    _check_file(path)
    try:
        return SourceSpectrum.from_file(str(path), keep_neg=True)
    except (SynphotError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path} must be a spectrum, with wavelength and flux: {error}") from error


def read_throughput(path: str | Path) -> SpectralElement:
    """
    Read the throughput of telescope, filter and detector.

    Parameters
    ----------
    path : str or Path
        Table with a column of wavelengths (in Angstrom, unless it has a unit) and one of electrons per
        photon.

    Returns
    -------
    SpectralElement
        The throughput.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it has not these columns, or no light comes through.
    """
    _check_file(path)
    table = Table.read(path) if Path(path).suffix in {".ecsv", ".fits"} else Table.read(path, format="ascii")
    wavelength, throughput = (_column(table, names, path) for names in (_WAVELENGTHS, _THROUGHPUTS))
    order = np.argsort(wavelength)
    throughput = np.asarray(throughput, float)[order]
    if not (np.isfinite(throughput).all() and throughput.max(initial=0) > 0):
        raise ValueError(f"throughput in {path} must be finite, and above 0 somewhere")
    points = u.Quantity(wavelength, getattr(wavelength, "unit", None) or _PLAIN)[order].to(u.AA)
    # Curves of few points are straight between them: integrals over these few would not be.
    fine = np.union1d(points.value, np.linspace(points.value[0], points.value[-1], _FINE)) * u.AA
    throughput = np.interp(fine.value, points.value, throughput)
    return SpectralElement(Empirical1D, points=fine, lookup_table=throughput)


def band_flux(spectrum: SourceSpectrum, throughput: SpectralElement) -> u.Quantity:
    """
    Average a spectrum over a filter, as a detector that counts photons does.

    The flux density at the pivot wavelength of a source with equal flux density at all frequencies that gives
    as many electrons:

        <F_nu> = int F_nu R dlambda / lambda  /  int R dlambda / lambda

    Parameters
    ----------
    spectrum : SourceSpectrum
        Of the star.
    throughput : SpectralElement
        Of the filter, electrons per photon.

    Returns
    -------
    Quantity
        The flux density [Jy].

    Raises
    ------
    ValueError
        If the spectrum ends within the filter.
    """
    (low, high), (first, last) = _ranges(spectrum, throughput)
    if not covers(spectrum, throughput):
        raise ValueError(
            f"the spectrum must cover the filter, {first:.3f} to {last:.3f} micron, but goes from {low:.3f} "
            f"to {high:.3f}"
        )
    # On the points of both: neither lines nor edges fall between.
    points = np.union1d(spectrum.waveset.to_value(u.AA), throughput.waveset.to_value(u.AA)) * u.AA
    seen = Observation(spectrum, throughput, binset=throughput.waveset, force="taper")
    return seen.effstim(flux_unit=u.Jy, wavelengths=points)


def tabulate(spectra: Mapping[str, str | Path], throughputs: Mapping[str, str | Path]) -> QTable:
    """
    Compute the fluxes of stars in filters.

    Parameters
    ----------
    spectra : mapping
        File of the spectrum, by the name of the star.
    throughputs : mapping
        File of the throughput, by the name of the filter.

    Returns
    -------
    QTable
        Row by star: column ``name``, and one with the name of each filter [Jy], NaN where a spectrum ends
        within the filter.
    """
    curves = {name: read_throughput(path) for name, path in throughputs.items()}
    table = QTable(
        {"name": list(spectra)}, meta={"files": {k: str(v) for k, v in (spectra | throughputs).items()}}
    )
    stars = [read_spectrum(path) for path in spectra.values()]
    for name, curve in curves.items():
        table[name] = u.Quantity(
            [band_flux(star, curve) if covers(star, curve) else np.nan * u.Jy for star in stars]
        )
    return table


def _check_file(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")


def _column(table, names, path):
    for column in table.colnames:
        if column.lower() in names:
            return table[column]
    raise ValueError(f"{path} must have a column {' or '.join(names)}, got {', '.join(table.colnames)}")


def covers(spectrum: SourceSpectrum, throughput: SpectralElement) -> bool:
    """
    Tell whether a spectrum covers a filter.

    Parameters
    ----------
    spectrum : SourceSpectrum
        Of a star.
    throughput : SpectralElement
        Of the filter.

    Returns
    -------
    bool
        Whether it does, where any light comes through.
    """
    (low, high), (first, last) = _ranges(spectrum, throughput)
    return low <= first and high >= last


def _ranges(spectrum, throughput):
    """Wavelengths of a spectrum, and of the light that a filter lets through [micron]."""
    points = throughput.waveset
    through = throughput(points).value > _NEGLIGIBLE * throughput(points).value.max()
    return spectrum.waveset[[0, -1]].to_value(u.um), points[through][[0, -1]].to_value(u.um)
