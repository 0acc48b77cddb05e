"""What every test needs: a folder of its own, no display, no network."""

import copy
import functools
import gc
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import asdf
import asdf.schema
import pytest

# Before anything imports pyplot: the suite runs where there is no display.
os.environ["MPLBACKEND"] = "Agg"
# jwst asks CRDS for parameters on every Step it builds unless told not to.
os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
# Before anything imports numpy: the cores are taken by the workers of pytest.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Put the quick files last: handed out by file, they fill what is left of the time of one worker."""
    items.sort(key=lambda item: item.path.parent.name == "algorithms")


@pytest.fixture(scope="session", autouse=True)
def schemas_shared():
    """
    Let asdf parse each schema once, and hand it out without a copy: it does so dozens of times per file.

    The same for what stdatamodels makes of it for each model. What is validated, and against what, stays
    the same; at the end the schemas must be what they were.
    """
    import stdatamodels.schema

    load = getattr(asdf.schema, "_load_schema_cached", None)
    make_loader = getattr(asdf.schema, "_make_schema_loader", None)
    if load is None or make_loader is None:
        # Another asdf, with other insides: the tests are slower, and that is all.
        yield
        return
    shared, merged = {}, {}
    merge = stdatamodels.schema.merge_property_trees

    def share(url, resolve_references=False):
        key = url, resolve_references
        if key not in shared:
            found = load(url, resolve_references)
            shared[key] = found, copy.deepcopy(found)
            # It lives as long as the tests: nothing else gets its id.
            merged[id(found)] = None
        return shared[key][0]

    def share_merged(schema):
        if id(schema) not in merged:
            return merge(schema)
        if merged[id(schema)] is None:
            found = merge(schema)
            merged[id(schema)] = found, copy.deepcopy(found)
        return merged[id(schema)][0]

    with pytest.MonkeyPatch.context() as patched:
        loader = functools.cache(make_loader())
        patched.setattr(asdf.schema, "_make_schema_loader", lambda: loader)
        patched.setattr(asdf.schema, "load_schema", share)
        patched.setattr(stdatamodels.schema, "merge_property_trees", share_merged)
        yield
    for schema, before in (*shared.values(), *filter(None, merged.values())):
        assert schema == before, f"the tests have changed the schema {before.get('id')}"


@pytest.fixture(scope="session", autouse=True)
def hurry():
    """Save a tenth of the time: stpipe tidies up before every step, asdf reads files like a proof-reader."""
    import stpipe.step

    tidier = SimpleNamespace(collect=lambda: gc.collect(1))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stpipe.step, "gc", tidier)
        # What is written is still checked.
        patched.setattr(asdf.get_config(), "validate_on_read", False)
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Spare the collections, of which stpipe does one before every run, all that was imported before."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def tmp_cwd(tmp_path, monkeypatch):
    """Run each test in an empty folder, so that whatever it drops is seen and goes away."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def shared_data():
    """Return the folder of real data that lies beside the repository, where there is one."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which do not come with the repository")
    return folder


LIGHT = 2.99792458e18  # [Angstrom/s]


@dataclass(frozen=True)
class Standards:
    """
    Simulated standard stars in a folder: ``stars``, ``spectra``, ``throughputs`` and ``psfs``.

    The first star is observed again and again, in two subarrays in turn, while the sensitivity falls.
    """

    folder: Path
    band: str = "F1000W"
    #: Loss per year, amplitude and tau [d].
    loss: tuple = (0.03, 0.2, 200.0)
    #: Rates in subarrays in units of those in the second.
    subarrays: tuple = (("SUB64", 0.985), ("SUB256", 1.0))
    #: True fluxes [mJy], and the names that CALSPEC gives the spectra.
    stars: tuple = (
        ("J1757132", 60.0, "1757132_mod_005"),
        ("BD+60 1753", 40.0, "bd60d1753_mod_005"),
        ("P330E", 30.0, "p330e_mod_008"),
        ("10LAC", 90.0, "10lac_mod_004"),
    )

    def look(self, name, mjd, number, subarray="SUB64"):
        """Take an exposure of a star."""
        from miri_steps import simulate

        (place,) = (k for k, star in enumerate(self.stars) if star[0] == name)
        ra, dec, days = 10.0 * (1 + place), 60.0, mjd - 59720.0
        loss, amplitude, tau = self.loss
        fading = (1 - loss * days / 365) * (amplitude * np.exp(-days / tau) + 1 - amplitude)
        flux = self.stars[place][1] * fading * dict(self.subarrays)[subarray]
        star = Table({"ra": [ra], "dec": [dec], "flux_mjy": [flux]})
        scene = simulate.Scene(ra, dec).with_catalog(star)
        plan = simulate.grid(ra, dec, n=(1, 1), step=1.0, per_visit=1, start_time=mjd, observation=number)
        settings = {"sky": 5.0, "noise": 0.05, "bad_pixels": 0.0, "psf": simulate.psf(self.band)}
        (model,) = simulate.observe(scene, plan, self.band, subarray=subarray, seed=number, **settings)
        model.meta.target.catalog_name = name
        return model

    def write(self):
        """Fill the folder."""
        for kind in ("stars", "spectra", "throughputs", "psfs"):
            (self.folder / kind).mkdir()
        dates = [(self.stars[0][0], 59740.0 + days) for days in np.linspace(0, 1380, 12)]
        dates += [(star[0], 60020.0 + 100 * k) for k, star in enumerate(self.stars[1:])]
        for number, (name, mjd) in enumerate(dates, start=1):
            model = self.look(name, mjd, number, self.subarrays[number % 2 if name == dates[0][0] else 0][0])
            model.save(str(self.folder / "stars" / model.meta.filename))
        for _, flux, name in self.stars:
            self._write_spectrum(flux, name)
        self._write_optics()

    def _write_spectrum(self, flux, name):
        wavelength = np.linspace(8e4, 12e4, 300)
        columns = [
            fits.Column("WAVELENGTH", "D", array=wavelength, unit="ANGSTROMS"),
            fits.Column("FLUX", "D", array=flux * 1e-26 * LIGHT / wavelength**2, unit="FLAM"),
        ]
        fits.BinTableHDU.from_columns(columns).writeto(self.folder / "spectra" / f"{name}.fits")

    def _write_optics(self):
        from miri_steps import simulate

        curve = {"wavelength": np.array([9.0, 9.1, 10.9, 11.0]) * u.um, "throughput": [0.0, 0.3, 0.3, 0.0]}
        Table(curve).write(self.folder / "throughputs" / f"{self.band}.ecsv")
        psf = simulate.psf(self.band)
        header = fits.Header({"PIXELSCL": 0.11 / psf.oversample})
        fits.PrimaryHDU(psf.data, header).writeto(self.folder / "psfs" / f"miri_{self.band}_psf.fits")


@pytest.fixture(scope="session")
def standards(tmp_path_factory):
    """Make standard stars, once."""
    made = Standards(tmp_path_factory.mktemp("standards"))
    made.write()
    return made
