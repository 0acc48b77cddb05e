"""Whole reductions: stock stages 1 to 3 with the Steps of this package in them, over a folder of exposures.

>>> from miri_steps.reduction import reduce
>>> table = reduce("ngc3132", maximum_cores="half")  # doctest: +SKIP
"""

from __future__ import annotations

__all__ = ["reduce"]


def __getattr__(name: str) -> object:
    # Loaded at first use: it imports the pipeline.
    if name != "reduce":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from miri_steps.reduction.chain import reduce

    return reduce


def __dir__() -> list[str]:
    return __all__
