"""The `stpipe.steps` entry point: what makes ``strun pixel_skymatch`` work."""

__all__ = ["get_steps"]


def get_steps() -> list[tuple[str, str, bool]]:
    """
    List the Steps of this package for stpipe.

    stpipe calls this on every start of ``strun``, so it holds strings only and
    imports nothing. ``tests/test_package.py`` keeps it in step with the classes.

    Returns
    -------
    list of (str, str, bool)
        The importable name of each class, its alias, and whether it is a Pipeline.
    """
    return [
        ("miri_steps.MedianHotPixelStep", "median_hot_pixel", False),
        ("miri_steps.PixelSkyMatchStep", "pixel_skymatch", False),
        ("miri_steps.RateFromRateintsStep", "rate_from_rateints", False),
        ("miri_steps.StarPhotometryStep", "star_photometry", False),
        ("miri_steps.SuperBackgroundStep", "super_background", False),
        ("miri_steps.TileAstrometryStep", "tile_astrometry", False),
    ]
