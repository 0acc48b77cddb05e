"""Simulated fields with known truth, made once, and what the tests of all Steps ask of their results."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from jwst import datamodels
from jwst.datamodels import ModelLibrary
from jwst.stpipe import Step
from tweakwcs.correctors import JWSTWCSCorrector

from miri_steps.simulate import Scene, columns, dome, grid, integrate, mosaic, observe, wcs, write

RA, DEC = 83.6, -69.1
PLANES = ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat")


@dataclass(frozen=True)
class Field:
    """Exposures on disk and what is true of them."""

    association: Path
    sky: np.ndarray
    pattern: np.ndarray | None
    visit: np.ndarray

    @property
    def files(self):
        members = json.loads(self.association.read_text())["products"][0]["members"]
        return [str(self.association.parent / member["expname"]) for member in members]

    @property
    def names(self):
        return [Path(name).name for name in self.files]

    def level(self, names=None):
        """True level of each exposure above the lowest one of these."""
        known = dict(zip(self.names, self.sky, strict=True))
        chosen = {name: known[name] for name in names or self.names}
        return {name: value - min(chosen.values()) for name, value in chosen.items()}

    def dictionary(self, files=None):
        """Name files in an association without a file of its own."""
        members = [{"expname": name, "exptype": "science"} for name in files or self.files]
        return {"asn_type": "image3", "asn_id": "a3001", "products": [{"name": "field", "members": members}]}


def make(folder, plan, *, sky, scene, **settings):
    observation = observe(scene, plan, "F770W", sky=sky, **settings)
    visit = np.array([pointing.visit_id for pointing in plan])
    return Field(write(observation, folder, product="field"), observation.sky, observation.pattern, visit)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fields")


@pytest.fixture(scope="session")
def nebula(folder):
    """Six exposures of 28 arcsec in two visits, stars and emission far stronger than the levels."""
    scene = Scene(RA, DEC).with_stars(20, radius=40, seed=2).with_emission(5.0, radius=40, seed=3)
    return make(
        folder / "nebula",
        grid(RA, DEC, n=(3, 2), step=9.0, per_visit=3, pa=20),
        sky=[3.0, 3.4, 2.7, 3.9, 3.1, 3.6],
        scene=scene,
        subarray="SUB256",
    )


@pytest.fixture(scope="session")
def glow(folder):
    """Nine exposures in three visits with a hill of light fixed to the detector."""
    return make(
        folder / "glow",
        mosaic(RA, DEC, tiles=(3, 1), dithers=3, tile_step=(5.0, 0.0), dither_step=6.0, pa=20),
        sky=np.repeat([3.0, 3.3, 2.8], 3),
        scene=Scene(RA, DEC).with_emission(2.0, radius=40, seed=4),
        pattern=dome(0.5, center=(560.0, 170.0), radius=100.0),
        subarray="SUB256",
    )


@pytest.fixture(scope="session")
def ring(folder):
    """Four exposures that share narrow edges, and small corners with the one across."""
    return make(
        folder / "ring",
        grid(RA, DEC, n=(2, 2), step=21.0, per_visit=2),
        sky=[3.0, 3.4, 2.7, 3.9],
        scene=Scene(RA, DEC).with_emission(2.0, radius=40, seed=5),
        subarray="SUB256",
    )


@pytest.fixture(scope="session")
def pieces(folder):
    """Two pairs of exposures and one alone, 5 arcmin from each other."""
    there = [
        grid(RA, DEC + 0.08 * number, n=(count, 1), step=8.0, observation=number)
        for number, count in ((1, 2), (2, 2), (3, 1))
    ]
    return make(
        folder / "pieces",
        [pointing for plan in there for pointing in plan],
        sky=[3.0, 3.5, 7.0, 7.2, 1.0],
        scene=Scene(RA, DEC).with_emission(2.0, radius=40, seed=6),
        subarray="SUB256",
    )


@pytest.fixture(scope="session")
def fullframe(folder):
    """Four dithered exposures of the whole detector, with a hill of light fixed to it."""
    return make(
        folder / "fullframe",
        mosaic(RA, DEC, tiles=(1, 1), dithers=4, dither_step=8.0),
        sky=[3.0, 3.4, 2.7, 3.9],
        scene=Scene(RA, DEC).with_emission(5.0, radius=90, seed=7),
        pattern=dome(0.5),
    )


# Small ones, for what does not depend on the size: most of the time of a test goes into opening files.


@pytest.fixture(scope="session")
def row(folder):
    """Three exposures of 7 arcsec in two visits that overlap one another."""
    return make(
        folder / "row",
        grid(RA, DEC, n=(3, 1), step=2.0, per_visit=2),
        sky=[3.0, 3.4, 2.7],
        scene=Scene(RA, DEC).with_emission(2.0, radius=15, seed=5),
        subarray="SUB64",
    )


@pytest.fixture(scope="session")
def integrated(folder):
    """Three rates of three integrations each, hit by cosmic rays; they know where they look."""
    place = folder / "integrated"
    plan = grid(RA, DEC, n=(3, 1), step=2.0, per_visit=2)
    scene = Scene(RA, DEC).with_emission(2.0, radius=15, seed=8)
    observation = observe(scene, plan, "F770W", sky=[3.0, 3.4, 2.7], subarray="SUB64")
    for number, pointing in enumerate(plan):
        exposure = integrate(observation, number, nints=3, cosmic_rays=0.05)
        exposure.rate.meta.wcs = wcs.build(pointing, "F770W", "SUB64")
        exposure.write(place)
    members = [{"expname": path.name, "exptype": "science"} for path in sorted(place.glob("*_rate.fits"))]
    association = place / "field_asn.json"
    association.write_text(
        json.dumps({"asn_id": "a3001", "products": [{"name": "field", "members": members}]})
    )
    visit = np.array([pointing.visit_id for pointing in plan])
    return Field(association, observation.sky, None, visit)


@pytest.fixture(scope="session")
def spotted(folder):
    """Three dithers with hot and dead pixels, flagged ones and others, and cosmic rays."""
    return make(
        folder / "spotted",
        mosaic(RA, DEC, tiles=(1, 1), dithers=3, dither_step=2.5),
        sky=[3.0, 3.4, 2.7],
        scene=Scene(RA, DEC).with_stars(20, radius=25, seed=9),
        # The smallest one on the imager: outside nothing is filled.
        subarray="SUB256",
        hot_pixels=0.005,
        dead_pixels=0.001,
        cosmic_rays=1e-3,
    )


@pytest.fixture(scope="session")
def striped(folder):
    """Four dithers of a few stars seen through a hill of light and stripes fixed to the detector."""
    return make(
        folder / "striped",
        grid(RA, DEC, n=(2, 2), step=3.0, per_visit=2),
        sky=[4.0, 4.4, 3.7, 4.9],
        scene=Scene(RA, DEC).with_stars(4, radius=6, flux=(0.002, 0.3), seed=10),
        pattern=dome(0.5, center=(540, 180), radius=150) + columns(0.1),
        subarray="SUB64",
    )


@pytest.fixture(scope="session")
def dusty(folder):
    """Five dithers of a field of stars seen through a hill of light and stripes fixed to the detector."""
    return make(
        folder / "dusty",
        grid(RA, DEC, n=(5, 1), step=5.0, per_visit=3),
        sky=[4.0, 4.4, 3.7, 4.9, 4.1],
        scene=Scene(RA, DEC).with_stars(30, radius=25, flux=(0.002, 0.3), seed=10),
        pattern=dome(0.5, center=(540, 180), radius=150) + columns(0.1),
        subarray="SUB256",
    )


def tweak(model, shift, rotation=0.0):
    """Leave in an exposure what tweakreg does: a correction [arcsec, rad] and its status."""
    corrector = JWSTWCSCorrector(model.meta.wcs, model.meta.wcsinfo.instance)
    c, s = np.cos(rotation), np.sin(rotation)
    corrector.set_correction(matrix=[[c, -s], [s, c]], shift=shift)
    model.meta.wcs = corrector.wcs
    model.meta.cal_step.tweakreg = "COMPLETE"
    return model


@pytest.fixture(scope="session")
def tweaked():
    """Do to an exposure what tweakreg does."""
    return tweak


@pytest.fixture(scope="session")
def askew(folder):
    """Three exposures in two tiles, 0.2 and 1.2 arcsec off, that tweakreg has put right to 20 mas."""
    plan = grid(RA, DEC, n=(3, 1), step=2.0, per_visit=2, pa=20)
    truth = np.array([[0.2, -0.1], [0.2, -0.1], [-0.9, 0.8]])
    scene = Scene(RA, DEC).with_stars(4, radius=6, seed=11)
    observation = observe(scene, plan, "F770W", sky=3.0, pointing_error=truth, subarray="SUB64")
    place = folder / "askew"
    association = write(observation, place, product="field")
    scatter = np.random.default_rng(12).normal(0, 0.02, truth.shape)
    for model, shift in zip(observation, truth + scatter, strict=True):
        tweak(model, shift).save(str(place / model.meta.filename))
    visit = np.array([pointing.visit_id for pointing in plan])
    return Field(association, observation.sky, None, visit)


@pytest.fixture(scope="session")
def loaded():
    """Open exposures once for all tests: for Steps, which must not change them; nor may a test."""
    models = {}

    def load_all(files):
        for name in map(str, files):
            if name not in models:
                with datamodels.open(name) as model:
                    models[name] = model.copy()
        return [models[str(name)] for name in files]

    yield load_all
    for model in models.values():
        model.close()


@pytest.fixture
def opened(loaded):
    """Open exposures in memory, for one test alone; they are closed when it is over."""
    models = []

    def open_all(files):
        fresh = [model.copy() for model in loaded(files)]
        models.extend(fresh)
        return fresh

    yield open_all
    for model in models:
        model.close()


def each(result):
    """Go through the models of whatever a Step returned, and leave them as they are."""
    if isinstance(result, ModelLibrary):
        with result:
            for index in range(len(result)):
                model = result.borrow(index)
                yield model
                result.shelve(model, index, modify=False)
    elif isinstance(result, datamodels.JwstDataModel):
        yield result
    else:
        yield from result


@pytest.fixture(scope="session")
def levels_of():
    """Levels in a result by the names of the exposures, in the order of the result."""

    def levels(result):
        return {model.meta.filename: model.meta.background.level for model in each(result)}

    return levels


@pytest.fixture(scope="session")
def status_of():
    """Status of both steps in a result, by the names of the exposures."""

    def status(result):
        return {
            model.meta.filename: (model.meta.cal_step.skymatch, model.meta.cal_step.pixel_skymatch)
            for model in each(result)
        }

    return status


@pytest.fixture(scope="session")
def planes_of():
    """Copies of all pixel planes of a result, by the names of the exposures, in their order."""

    def planes(result):
        return {
            model.meta.filename: {
                name: np.array(getattr(model, name)) for name in PLANES if getattr(model, name) is not None
            }
            | looks(model)
            for model in each(result)
        }

    return planes


def looks(model):
    """Where four pixels look."""
    if getattr(model.meta, "wcs", None) is None:
        return {}
    return {"sky": np.array(model.meta.wcs([5.0, 60.0, 5.0, 60.0], [5.0, 5.0, 60.0, 60.0]))}


@pytest.fixture
def shell(tmp_cwd):
    """Run a command of this Python environment in the test's folder and return all it said."""

    def run(command, *arguments, status=0):
        program = Path(sys.executable).with_name(command)
        done = subprocess.run(
            [str(program), *map(str, arguments)], cwd=tmp_cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture
def strun(caplog):
    """Do in this process what the command strun does, and return all it logged."""

    def run(*arguments):
        caplog.clear()
        Step.from_cmdline([str(each) for each in arguments])
        return caplog.text

    return run
