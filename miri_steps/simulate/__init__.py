"""Simulated MIRI fields with known truth: scene, plan, exposures, association.

>>> from miri_steps import simulate
>>> scene = simulate.Scene(339.0, 33.96).with_stars(n=50, seed=1).with_emission(amplitude=5.0)
>>> plan = simulate.mosaic(339.0, 33.96, tiles=(2, 1), dithers=4)
>>> observation = simulate.observe(scene, plan, "F770W", sky=4.0)
>>> association = simulate.write(observation, "field")  # doctest: +SKIP

It shares no code with the algorithms of this package: what tests them must not be built on them.
"""

from __future__ import annotations

from importlib import import_module

_WHERE = {
    "Scene": "scene",
    "Psf": "diffraction",
    "psf": "diffraction",
    "Pointing": "pointing",
    "mosaic": "pointing",
    "grid": "pointing",
    "from_footprints": "footprints",
    "observe": "exposure",
    "Observation": "exposure",
    "integrate": "integrations",
    "Integrations": "integrations",
    "ramp": "ramps",
    "reference_files": "references",
    "calibration_files": "references",
    "offline_crds": "references",
    "write": "files",
    "write_rates": "files",
    "dome": "patterns",
    "columns": "patterns",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    # Loaded at first use: the data models and the WCS library take a second to import.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
