"""Numbers and figures for people to judge by: one HTML page about a mosaic or a whole reduction.

>>> from miri_steps import report
>>> report.write("stage3/field_i2d.fits")  # doctest: +SKIP

matplotlib and jinja2 are imported by the modules that draw and write, not here.
"""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["write"]


def write(source: str | Path, output: str | Path | None = None) -> Path:
    """
    Write a page that shows whether a reduction worked.

    Think of the sheet that comes with a new lens: what was measured, how good it is, and what was not
    as it should be. The page needs nothing but itself, and opens from disk.

    Parameters
    ----------
    source : str or Path
        A mosaic of calwebb_image3 (``..._i2d.fits``), or a folder with one or several.
    output : str or Path, optional
        Page to write; by default ``<product>_report.html`` beside the mosaic, or ``report.html`` in the
        folder. Two more files with its stem hold the numbers: ``.json`` and ``_exposures.ecsv``.

    Returns
    -------
    Path
        The page. An older report of that name is replaced.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder, or no mosaic in it.
    FileExistsError
        If a file that is no report would have to be overwritten.
    ModuleNotFoundError
        If matplotlib or jinja2 are not installed.
    ValueError
        If the file is no mosaic of MIRI, or `output` does not end in ``.html``.
    """
    missing = [name for name in ("jinja2", "matplotlib") if not find_spec(name)]
    if missing:
        raise ModuleNotFoundError(
            f"a report needs {' and '.join(missing)}: pip install miri-steps[report]", name=missing[0]
        )
    from miri_steps.report import page

    return page.write(Path(source), None if output is None else Path(output))
