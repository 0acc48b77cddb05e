"""Drop-in steps for the JWST calibration pipeline that repair MIRI imaging."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version

__version__ = _version("miri-steps")

# A Step is imported when it is first asked for: `strun` and `miri-steps` read
# this package on every start, and jwst takes seconds to import.
_STEPS = {
    "MedianHotPixelStep": "miri_steps.steps.median_hot_pixel",
    "PixelSkyMatchStep": "miri_steps.steps.pixel_skymatch",
    "RateFromRateintsStep": "miri_steps.steps.rate_from_rateints",
    "StarPhotometryStep": "miri_steps.steps.star_photometry",
    "SuperBackgroundStep": "miri_steps.steps.super_background",
    "TileAstrometryStep": "miri_steps.steps.tile_astrometry",
}

__all__ = [*sorted(_STEPS), "__version__"]


def __getattr__(name):
    if name not in _STEPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    step = getattr(_import_module(_STEPS[name]), name)
    globals()[name] = step
    return step


def __dir__():
    return sorted(set(globals()) | set(_STEPS))
