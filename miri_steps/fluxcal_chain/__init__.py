"""The whole flux calibration: from a folder of standard stars to reference files, figures and tables.

>>> from miri_steps import fluxcal_chain
>>> calibrations = fluxcal_chain.run(
...     "stars", "stars_fluxcal", spectra="calspec", throughputs="throughputs", psfs="psfs"
... )  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module

__all__ = ["run", "write_apertures", "write_factors", "write_fluxes", "write_photometry", "write_subarrays"]


def __getattr__(name: str) -> object:
    # Loaded at first use: it imports the pipeline.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.parts"), name)


def __dir__() -> list[str]:
    return __all__
