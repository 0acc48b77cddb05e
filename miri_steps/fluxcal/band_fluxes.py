"""Fluxes of stars in filters, from spectra of models and throughput curves."""

from __future__ import annotations

import warnings
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
# Wavelengths without a unit are in that in which all of them lie between these: MIRI's are 4 to 30 micron.
_PLAIN = {u.um: (1.0, 60.0), u.AA: (1e4, 6e5)}
# Spectra of stars go on beyond this [Angstrom].
_SHORTEST = 1000.0
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
        FITS table with WAVELENGTH and FLUX, or text with two columns in Angstrom and erg/s/cm2/Angstrom
        (what ends below 1000 Angstrom is in another unit, and is refused).

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
        spectrum = SourceSpectrum.from_file(str(path), keep_neg=True)
    except (SynphotError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path} must be a spectrum, with wavelength and flux: {error}") from error
    last = spectrum.waveset[-1].to_value(u.AA)
    if last < _SHORTEST:
        raise ValueError(f"wavelengths in {path} must be in Angstrom, but end at {last:.4g}")
    return spectrum


def read_throughput(path: str | Path) -> SpectralElement:
    """
    Read the throughput of telescope, filter and detector.

    Parameters
    ----------
    path : str or Path
        Table with a column of wavelengths and one of electrons per photon. Wavelengths without a unit are
        in micron if all of them are 1 to 60, and in Angstrom if all are 1e4 to 6e5.

    Returns
    -------
    SpectralElement
        The throughput.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it has not these columns, no light comes through, or the unit of wavelengths is not known.
    """
    _check_file(path)
    table = Table.read(path) if Path(path).suffix in {".ecsv", ".fits"} else Table.read(path, format="ascii")
    wavelength, throughput = (_column(table, names, path) for names in (_WAVELENGTHS, _THROUGHPUTS))
    order = np.argsort(wavelength)
    throughput = np.asarray(throughput, float)[order]
    if not (np.isfinite(throughput).all() and throughput.max(initial=0) > 0):
        raise ValueError(f"throughput in {path} must be finite, and above 0 somewhere")
    points = (np.asarray(wavelength, float) * _unit(wavelength, path))[order].to(u.AA)
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
    if not covers(spectrum, throughput):
        raise ValueError(_gap(spectrum, throughput))
    # On the points of both: neither lines nor edges fall between.
    points = np.union1d(spectrum.waveset.to_value(u.AA), throughput.waveset.to_value(u.AA)) * u.AA
    observation = Observation(spectrum, throughput, binset=throughput.waveset, force="taper")
    return observation.effstim(flux_unit=u.Jy, wavelengths=points)


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
        Row by star: column ``name``, and one with the name of each filter [Jy], NaN, with a warning, where a
        spectrum ends within the filter.

    Raises
    ------
    FileNotFoundError
        If one of the files is not there.
    ValueError
        If there is no spectrum or no throughput, or one of the files is something else.
    """
    if not (spectra and throughputs):
        raise ValueError(
            "there must be spectra of stars and throughputs of filters, got "
            f"{len(spectra)} and {len(throughputs)}"
        )
    curves = {name: read_throughput(path) for name, path in throughputs.items()}
    files = {name: str(path) for name, path in [*spectra.items(), *throughputs.items()]}
    table = QTable({"name": list(spectra)}, meta={"files": files})
    stars = {name: read_spectrum(path) for name, path in spectra.items()}
    for name, curve in curves.items():
        table[name] = u.Quantity(
            [_flux_or_nan(star, spectrum, name, curve) for star, spectrum in stars.items()]
        )
    return table


def _flux_or_nan(star, spectrum, band, throughput):
    if covers(spectrum, throughput):
        return band_flux(spectrum, throughput)
    warnings.warn(f"no flux of {star} in {band}: {_gap(spectrum, throughput)}", stacklevel=4)
    return np.nan * u.Jy


def _gap(spectrum, throughput):
    """Write which part of a filter a spectrum does not cover."""
    (low, high), (first, last) = _ranges(spectrum, throughput)
    return (
        f"the spectrum must cover the filter, {first:.3f} to {last:.3f} micron, but goes from {low:.3f} to "
        f"{high:.3f}"
    )


def _check_file(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")


def _column(table, names, path):
    for column in table.colnames:
        if column.lower() in names:
            return table[column]
    raise ValueError(f"{path} must have a column {' or '.join(names)}, got {', '.join(table.colnames)}")


def _unit(wavelength, path):
    given = getattr(wavelength, "unit", None)
    if given is not None:
        return given
    low, high = np.min(wavelength), np.max(wavelength)
    for unit, (least, most) in _PLAIN.items():
        if least <= low and high <= most:
            return unit
    raise ValueError(
        f"wavelengths in {path} must have a unit, or be 1 to 60 (micron) or 1e4 to 6e5 (Angstrom), but are "
        f"{low:.4g} to {high:.4g}"
    )


def covers(spectrum: SourceSpectrum, throughput: SpectralElement) -> bool:
    """
    Check whether a spectrum covers a filter.

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
