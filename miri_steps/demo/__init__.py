"""The demo: one nebula, mosaics with and without `miri_steps`, and the truth to judge them by.

>>> from miri_steps import demo
>>> numbers = demo.run("miri_demo")  # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from astropy.table import QTable

from miri_steps import parameters
from miri_steps.demo import measure, numbers, pipelines
from miri_steps.demo.field import PRODUCT, Field
from miri_steps.demo.pipelines import Run

__all__ = ["Field", "run"]

_RUNS = (
    Run("stock", "calwebb_image3 as it comes", "calwebb_image3"),
    Run("miri_steps", "the same with PixelSkyMatchStep", parameters.file_name("image3_pixel_skymatch")),
    Run(
        "miri_steps_subtracted",
        "the same, detector background subtracted too",
        parameters.file_name("image3_pixel_skymatch"),
        ("--steps.skymatch.post_hooks=miri_steps.PixelSkyMatchStep(subtract_detector_background=True),",),
    ),
)
_TRUTH = Run(
    "truth",
    "the truth, drizzled in the same way",
    "calwebb_image3",
    ("--steps.skymatch.skip=true", "--steps.outlier_detection.skip=true"),
)


def run(folder: str | Path, field: Field | None = None) -> QTable:
    """
    Simulate a field, make its mosaic with and without miri_steps, and compare both with the truth.

    Progress and numbers are printed. The folder then holds the exposures, the mosaics, the logs of
    the pipelines, the numbers (``demo_numbers.ecsv``) and, where matplotlib is installed, a picture
    (``demo.png``).

    Parameters
    ----------
    folder : str or Path
        New or empty folder.
    field : Field, optional
        What to observe; 2x2 tiles of a nebula when not given.

    Returns
    -------
    QTable
        The numbers printed, one row per pipeline run.

    Raises
    ------
    FileExistsError
        If the folder is not empty. Nothing has been written then.
    RuntimeError
        If a pipeline fails; the message names its log.
    """
    folder, field = Path(folder), field or Field()
    _claim(folder)
    tell = _stopwatch()
    picture = _load_picture(tell)
    _simulate(folder, field, tell)
    results = []
    for planned in _RUNS:
        tell(f"{planned.title} [log: {planned.name}.log]")
        results.append(pipelines.run(planned, folder))
    tell("measuring the mosaics")
    compared = measure.compare(results, folder)
    table = numbers.table(compared, version("jwst"))
    table.write(folder / "demo_numbers.ecsv", format="ascii.ecsv")
    drawn = picture.draw(compared, folder / "demo.png") if picture else None
    tell("done")
    print(numbers.report(table, len(field.plan()), folder, drawn))
    return table


def _claim(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is not an empty folder; name a new one, nothing is touched"
        )
    folder.mkdir(parents=True, exist_ok=True)


def _simulate(folder: Path, field: Field, tell: Callable[[str], None]) -> None:
    tell(field.describe())
    field.write(folder / "exposures")
    tell("simulating the truth: the same without sky, detector background and noise")
    field.write(folder / _TRUTH.name, true=True)
    tell(f"{_TRUTH.title} [log: {_TRUTH.name}.log]")
    pipelines.run(_TRUTH, folder, association=f"{_TRUTH.name}/{PRODUCT}_asn.json")
    for exposure in (folder / _TRUTH.name).glob("*_cal.fits"):
        exposure.unlink()
    parameters.copy("image3_pixel_skymatch", folder / parameters.file_name("image3_pixel_skymatch"))


def _load_picture(tell: Callable[[str], None]) -> ModuleType | None:
    try:
        from miri_steps.demo import picture
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        tell("there will be no picture: matplotlib is not installed (pip install 'miri-steps[report]')")
        return None
    return picture


def _stopwatch() -> Callable[[str], None]:
    """Make a function that prints a line with the seconds since now in front of it."""
    begun = time.monotonic()
    return lambda text: print(f"{time.monotonic() - begun:4.0f} s  {text}", flush=True)
