"""Standard stars with known truth: what they are, how MIRI sees them, and what models say of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table
from scipy import ndimage
from stdatamodels.jwst import datamodels

from miri_steps import detector, simulate
from miri_steps.fluxcal import config
from miri_steps.simulate import sphere, wcs
from miri_steps.simulate.metadata import CONVERSION

LIGHT = 2.99792458e18  # [Angstrom/s]
T0, DAYS = 59720.0, 1400.0
TAU = 200.0
STARS = (
    *("10 Lac", "mu Col", "G 191-B2B", "GD 71", "BD+60 1753", "del UMi", "HD 2811", "HD 163466", "HD 180609"),
    *("2MASS J17430448+6655015", "2MASS J17571324+6703409", "2MASS J18022716+6043356", "16 Cyg B", "18 Sco"),
    *("GSPC P177-D", "GSPC P330-E", "HD 37962", "HD 106252", "HD 167060"),
)
#: Growth curves are those of these, in windows that hold the ring about them.
BRIGHT = "10 Lac", "mu Col", "HD 2811", "18 Sco"
#: Observed again and again: number of epochs. Without noise one of them tells as much.
MONITORED = {"BD+60 1753": 12, "2MASS J17430448+6655015": 11, "HD 37962": 10}
ONE = {"BD+60 1753": 12}
#: Exponents of the spectra, flux density per frequency ~ wavelength^-slope.
SLOPES = {"hot": 2.0, "A dwarf": 1.97, "solar analogue": 1.92}
# Models of PSFs know nothing of what the telescope adds: a Gaussian of this standard deviation [pixel].
BLUR = 0.35
# Flux of stars at 10 micron [mJy], and what their models and single observations are wrong by.
FAINTEST, BRIGHTEST = 20.0, 1000.0
MODEL_SCATTER, REPEATABILITY = 0.01, 0.002
# What the calibration takes the last for.
STATED_REPEATABILITY = 0.003
SIGNAL_TO_NOISE = 200.0, 1000.0


@dataclass(frozen=True)
class Truth:
    """What a filter is: factor at `T0` [MJy/sr per DN/s], loss [1/yr], amplitude, and sky [MJy/sr]."""

    factor: float
    loss: float
    amplitude: float
    sky: float

    def sensitivity(self, mjd: float | np.ndarray, tau: float = TAU) -> np.ndarray:
        """Tell the sensitivity at a date [MJD]."""
        linear = 1 - self.loss * (mjd - T0) / 365
        return linear * (self.amplitude * np.exp(-(mjd - T0) / tau) + 1 - self.amplitude)


TRUTH = {
    "F560W": Truth(0.45, 0.000, 0.00, 2.0),
    "F770W": Truth(0.26, 0.002, 0.01, 7.0),
    "F1000W": Truth(0.42, 0.004, 0.03, 25.0),
    "F1130W": Truth(1.25, 0.006, 0.05, 35.0),
    "F1280W": Truth(0.47, 0.009, 0.08, 50.0),
    "F1500W": Truth(0.44, 0.013, 0.12, 75.0),
    "F1800W": Truth(0.66, 0.018, 0.18, 120.0),
    "F2100W": Truth(0.63, 0.024, 0.30, 240.0),
    "F2550W": Truth(1.30, 0.030, 0.23, 750.0),
}


@dataclass(frozen=True)
class Look:
    """An observation that is planned: star, window, date, and number of the observation."""

    star: str
    subarray: str
    mjd: float
    number: int


# ---- truth: optics and spectra ----------------------------------------------------------------------------


@cache
def true_psf(band: str) -> simulate.Psf:
    """Blur the model as the telescope does; its light stays 1 out to infinity."""
    return _blur(simulate.psf(band), BLUR**2)


@cache
def drawn_psf(band: str) -> simulate.Psf:
    """Tell the light on the area of each sample: the simulator sums samples to pixels."""
    psf = simulate.psf(band)
    # Of the values at points a box as large as a sample makes its average; only its variance matters.
    return _blur(psf, BLUR**2 + 1 / (12 * psf.oversample**2))


def _blur(psf: simulate.Psf, variance: float) -> simulate.Psf:
    width = np.sqrt(variance) * psf.oversample
    return simulate.Psf(ndimage.gaussian_filter(psf.data, width, mode="constant"), psf.oversample)


def true_energy(psf: simulate.Psf, radii: Sequence[float]) -> np.ndarray:
    """Light of a star within radii [pixel] on pixels, the average over all places on a pixel."""
    samples, half = psf.oversample, int(max(radii)) + 3
    middle = psf.data.shape[0] // 2
    energy = np.zeros(len(radii))
    shifts = range(-(samples // 2), samples // 2 + 1)
    for down, left in np.ndindex(samples, samples):
        low = [middle + shifts[k] - half * samples - samples // 2 for k in (down, left)]
        size = (2 * half + 1) * samples
        fine = psf.data[low[0] : low[0] + size, low[1] : low[1] + size]
        pixels = fine.reshape(2 * half + 1, samples, 2 * half + 1, samples).sum(axis=(1, 3))
        # The star lies that much on the other side of the middle of the pixel.
        y, x = (-shifts[k] / samples for k in (down, left))
        energy += [(pixels * circle(radius, x, y, half)).sum() for radius in radii]
    return energy / samples**2


def circle(radius: float, x: float, y: float, half: int, lines: int = 40) -> np.ndarray:
    """Part of each pixel within a circle about (x, y) from the middle one: chords on many lines."""
    pixel = np.arange(-half, half + 1)
    height = (pixel[:, None] + (np.arange(lines) + 0.5) / lines - 0.5).ravel() - y
    chord = np.sqrt(np.maximum(radius**2 - height**2, 0.0))[:, None]
    across = np.minimum(pixel + 0.5 - x, chord) - np.maximum(pixel - 0.5 - x, -chord)
    return np.maximum(across, 0.0).reshape(len(pixel), lines, len(pixel)).mean(axis=1)


def true_corrections(band: str, rows: np.ndarray) -> np.ndarray:
    """Tell what the corrections of a file should be, with its own radii."""
    inner, outer = float(rows["skyin"][0]), float(rows["skyout"][0])
    *inside, first, last = true_energy(drawn_psf(band), [*map(float, rows["radius"]), inner, outer])
    wings = (last - first) / (outer**2 - inner**2)
    return 1 / (np.array(inside) - wings * rows["radius"].astype(float) ** 2)


def throughput(band: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw the curve of a filter: wavelengths [micron] and electrons per photon."""
    middle, half = detector.BANDS[band].wavelength, detector.BANDS[band].width / 2
    return middle + half * np.array([-1.05, -0.95, 0.9, 1.05]), np.array([0.0, 0.3, 0.35, 0.0])


def flux_of(star: str, wavelength: np.ndarray) -> np.ndarray:
    """Flux density of the model of a star [mJy] at wavelengths [micron]."""
    at_ten = np.geomspace(FAINTEST, BRIGHTEST, len(STARS))[order_of(star)]
    return at_ten * (wavelength / 10.0) ** -SLOPES[config.star(star).type]


def order_of(star: str) -> int:
    """Place in order of flux: the bright are the last, the monitored in the middle, others between."""
    last = [name for name in STARS if name not in (*MONITORED, *BRIGHT)]
    return [*last[:8], *MONITORED, *last[8:], *BRIGHT].index(star)


@cache
def band_flux(star: str, band: str) -> float:
    """Photon-weighted mean of the model in a filter [mJy]."""
    points, values = throughput(band)
    wavelength = np.linspace(points[0], points[-1], 20001)
    weight = np.interp(wavelength, points, values) / wavelength
    return float((flux_of(star, wavelength) * weight).sum() / weight.sum())


# ---- what the chain reads ---------------------------------------------------------------------------------


def write_models(folder: Path, bands: Sequence[str], psf: Callable[[str], simulate.Psf]) -> dict[str, Path]:
    """Write spectra, throughputs and PSFs; keywords of `fluxcal_chain.run`."""
    folders = {kind: folder / kind for kind in ("spectra", "throughputs", "psfs")}
    for path in folders.values():
        path.mkdir(parents=True)
    for star in STARS:
        write_spectrum(star, folders["spectra"])
    for band in bands:
        points, values = throughput(band)
        curve = Table({"wavelength": points * u.um, "throughput": values})
        curve.write(folders["throughputs"] / f"{band}.ecsv")
        image = psf(band)
        header = fits.Header({"PIXELSCL": detector.PIXEL_SCALE / image.oversample})
        fits.PrimaryHDU(image.data, header).writeto(folders["psfs"] / f"miri_{band}_psf.fits")
    return folders


def write_spectrum(star: str, folder: Path) -> None:
    """Write the model of a star as CALSPEC does."""
    wavelength = np.geomspace(4.0, 31.0, 5000)
    flux = flux_of(star, wavelength) * 1e-26 * LIGHT / (wavelength * 1e4) ** 2
    columns = [
        fits.Column("WAVELENGTH", "D", array=wavelength * 1e4, unit="ANGSTROMS"),
        fits.Column("FLUX", "D", array=flux, unit="FLAM"),
    ]
    name = star.replace(" ", "").lower()
    fits.BinTableHDU.from_columns(columns).writeto(folder / f"{name}_mod_001.fits")


def program_of(band: str) -> int:
    """Give each filter a program of its own."""
    return 1000 + list(TRUTH).index(band)


def plan(random: np.random.Generator, band: str, monitored: Mapping[str, int]) -> list[Look]:
    """Plan the observations in a filter: those seen again wander through the windows."""
    windows, looks = windows_of(band), []
    for star in STARS:
        epochs = monitored.get(star, 1)
        # The first weeks tell the exponential part.
        days = np.linspace(10.0, DAYS, epochs) if epochs > 1 else random.uniform(10.0, DAYS, 1)
        for k, day in enumerate(days + random.uniform(-5.0, 5.0, epochs)):
            window = windows[k % len(windows)] if epochs > 1 else random.choice(windows)
            looks.append(Look(star, "SUB256" if star in BRIGHT else window, T0 + day, len(looks) + 1))
    return looks


def windows_of(band: str) -> tuple[str, ...]:
    """List windows that hold the ring for the background."""
    return ("SUB64", "SUB128", "SUB256") if detector.FWHM[band] < 5 else ("SUB128", "SUB256", "BRIGHTSKY")


@dataclass
class World:
    """
    Stars as they are: what differs from their models, and how well each is seen.

    Parameters
    ----------
    real : bool
        Whether there is noise, and models and single observations are wrong.
    seed : int
        Of the random numbers.
    """

    real: bool
    seed: int

    def __post_init__(self) -> None:
        """Draw the stars."""
        self.random = np.random.default_rng(self.seed)
        self.places: dict[str, tuple[float, float]] = {}
        low, high = np.log(SIGNAL_TO_NOISE)
        self.signal_to_noise = dict(
            zip(STARS, np.exp(self.random.uniform(low, high, len(STARS))), strict=True)
        )

    def expose(
        self, look: Look, band: str, dithers: tuple[int, int] = (1, 1)
    ) -> Iterator[datamodels.ImageModel]:
        """Look at a star; the target is right to 2 pixels, so that it falls anywhere on a pixel."""
        truth, order = TRUTH[band], STARS.index(look.star)
        ra, dec = 10.0 + 15.0 * order, 60.0
        flux = band_flux(look.star, band) * CONVERSION / truth.factor
        flux *= truth.sensitivity(look.mjd) * config.transmissions()[look.subarray] * self.wrong(look, band)
        scene = simulate.Scene(ra, dec).with_catalog(Table({"ra": [ra], "dec": [dec], "flux_mjy": [flux]}))
        place = sphere.offset(ra, dec, *self.random.uniform(-0.22, 0.22, 2))
        pointings = simulate.grid(
            *place, n=dithers, step=1.35, per_visit=4, program=program_of(band), observation=look.number,
            start_time=look.mjd,
        )  # fmt: skip
        seen = simulate.observe(
            scene, pointings, band, subarray=look.subarray, sky=truth.sky, psf=drawn_psf(band),
            noise=self.noise(look.star, band, flux), poisson=self.real, bad_pixels=0.0, seed=self.seed,
        )  # fmt: skip
        for pointing, model in zip(pointings, seen, strict=True):
            model.meta.target.catalog_name = look.star
            x, y = wcs.sky_to_pixels(sphere.unit_vectors([ra], [dec]), pointing, band, look.subarray)
            self.places[model.meta.filename] = float(x[0]), float(y[0])
            yield model

    def seen_in(self, band: str) -> list[str]:
        """List the exposures in a filter."""
        return [name for name in self.places if name.startswith(f"jw0{program_of(band)}")]

    def wrong(self, look: Look, band: str) -> float:
        """Factor by which an observation is not what the model of the star says."""
        if not self.real:
            return 1.0
        own = np.random.default_rng([self.seed, STARS.index(look.star), list(TRUTH).index(band)])
        again = np.random.default_rng([self.seed, look.number, list(TRUTH).index(band), 1])
        return (1 + MODEL_SCATTER * own.normal()) * (1 + REPEATABILITY * again.normal())

    def noise(self, star: str, band: str, flux: float) -> float:
        """Noise of a pixel [MJy/sr]: that of the sky, or, of fainter stars, what signal to noise asks for."""
        if not self.real:
            return 1e-6
        if star in BRIGHT:
            return 0.05 + 0.001 * TRUTH[band].sky
        area = wcs.nominal_pixel_area(band) * sphere.ARCSEC**2
        in_aperture = 0.7 * flux * 1e-9 / area
        return in_aperture / (self.signal_to_noise[star] * np.sqrt(np.pi) * 1.4 * detector.FWHM[band])


# ---- tables without images -------------------------------------------------------------------------------

APCORR, PIXEL_AREA = 1.5, 2.84e-13


def draw(
    random: np.random.Generator, bands: Sequence[str], taus: Mapping[str, float]
) -> tuple[QTable, QTable]:
    """Simulate the tables of a survey: rows of photometry, and fluxes of the models."""
    rows, fluxes = [], QTable({"name": list(STARS)})
    for band in bands:
        truth = TRUTH[band]
        flux = np.array([band_flux(star, band) for star in STARS]) / 1e3
        fluxes[band] = flux * (1 + MODEL_SCATTER * random.normal(size=len(STARS))) * u.Jy
        for look in plan(random, band, MONITORED):
            rate = flux[STARS.index(look.star)] / (truth.factor * 1e6 * PIXEL_AREA * APCORR)
            rate *= truth.sensitivity(look.mjd, taus[band]) * config.transmissions()[look.subarray]
            error = rate / np.exp(random.uniform(*np.log(SIGNAL_TO_NOISE)))
            seen = (rate + error * random.normal()) * (1 + STATED_REPEATABILITY * random.normal())
            rows.append((look.star, config.star(look.star).type, band, look.subarray, look.mjd, seen, error))
    names = "name", "type", "filter", "subarray", "timemid", "rate", "rate_error"
    units = {"timemid": u.day, "rate": u.DN / u.s, "rate_error": u.DN / u.s}
    table = QTable(rows=rows, names=names, units=units)
    table["apcorr"], table["pixel_area"] = APCORR, PIXEL_AREA * u.sr
    return table, fluxes
