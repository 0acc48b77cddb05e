"""Find the files of a reduction, and read what is in them but the pixels of exposures."""

from __future__ import annotations

import json
import logging
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from miri_steps import detector
from miri_steps.exposures import flagged_pixels, open_file, read_logs
from miri_steps.report import logs

__all__ = [
    "Exposure",
    "Mosaic",
    "Plane",
    "exposure_key",
    "find_mosaics",
    "pixel_side",
    "read_mosaic",
    "read_table",
]

log = logging.getLogger(f"stpipe.{__name__}")

# Names of the telescope's files, up to the detector.
_NAME = re.compile(r"jw\d{11}_\w{5}_\d{5}(?:-seg\d{3})?_mir[a-z]+")
# What calwebb_image3 adds to names of other kinds, and the suffix of a file.
_CRF = re.compile(r"(_[a-z]\d{3,4})?_crf$")
_SUFFIX = re.compile(r"_[a-z0-9]+$")
# Mosaics that are no product: of single exposures, and on the way to finding outliers.
_NO_PRODUCT = re.compile(r"(jw\d{11}_\w{5}_\d{5}.*_mir[a-z]+|.*_outlier)_i2d\.fits")


@dataclass
class Exposure:
    """
    An exposure of a mosaic.

    Parameters
    ----------
    key : str
        Its name without suffix.
    before, after : Path, optional
        Files that went into the pipeline, and that went into the mosaic; None where they are not there.
    visit, guide_star : str
        Who took it; empty where not known.
    band : str
        Its filter.
    seconds : float
        Exposure time [s].
    frame : tuple of int
        First column and row of its frame on the detector, and their numbers; zeros where not known.
    status : dict
        What each step did, as far as the file says.
    level, level_error : float
        Level of its sky and its standard error [unit of the data]; NaN where not known.
    history : list of str
        HISTORY of this package.
    lines : list of LogLine
        Lines of the log that name it.
    problems : list of str
        Why it is not in the pictures.
    """

    key: str
    before: Path | None = None
    after: Path | None = None
    visit: str = ""
    guide_star: str = ""
    band: str = ""
    seconds: float = np.nan
    frame: tuple[int, int, int, int] = (0, 0, 0, 0)
    status: dict[str, str] = field(default_factory=dict)
    level: float = np.nan
    level_error: float = np.nan
    history: list[str] = field(default_factory=list)
    lines: list[logs.LogLine] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def tile(self) -> str:
        """What it has in common with the exposures that were aligned to each other by the telescope."""
        return " ".join(filter(None, (self.visit, self.guide_star))) or self.key


@dataclass(frozen=True)
class Plane:
    """
    An image of the detector.

    Parameters
    ----------
    path : Path
        Its file.
    data : ndarray
        The image.
    unit : str
        Its unit.
    count : ndarray, optional
        Number of samples, or flags.
    note : str
        What else there is to say.
    """

    path: Path
    data: np.ndarray
    unit: str = ""
    count: np.ndarray | None = None
    note: str = ""

    def flagged(self, flag: str) -> np.ndarray:
        """Find the pixels that have a DQ flag, where `count` holds flags."""
        return flagged_pixels(self.count, flag)


@dataclass
class Mosaic:
    """
    A mosaic and all that lies beside it.

    Parameters
    ----------
    path : Path
        Its file.
    header : fits.Header
        Primary header, with the cards of the image.
    image : ndarray
        The mosaic.
    wcs : WCS
        Where its pixels are on the sky.
    exposures : list of Exposure
        In the order of their tiles and names.
    association : Path, optional
        What names the exposures before.
    versions, references : dict
        Software, and reference files by type.
    tables : dict of Table
        ``sky_levels``, ``sky_pairs``, ``tiles`` and ``tile_exposures``, as far as they are there.
    detector_background : Plane, optional
        As `PixelSkyMatchStep` saves it.
    super_backgrounds : list of Plane
        As `SuperBackgroundStep` saves them.
    hot_pixels : list of Plane
        As `MedianHotPixelStep` saves them: ``data`` counts exposures, ``count`` is the dq.
    log : list of LogLine
        Lines of all logs.
    """

    path: Path
    header: fits.Header
    image: np.ndarray
    wcs: WCS
    exposures: list[Exposure]
    association: Path | None
    versions: dict[str, str]
    references: dict[str, str]
    tables: dict[str, Table]
    detector_background: Plane | None
    super_backgrounds: list[Plane]
    hot_pixels: list[Plane]
    log: list[logs.LogLine]

    @property
    def product(self) -> str:
        """Name of the product."""
        return self.path.stem.removesuffix("_i2d")

    @property
    def band(self) -> str:
        """Filter."""
        return str(self.header.get("FILTER", ""))

    @property
    def unit(self) -> str:
        """Unit of the image."""
        return str(self.header.get("BUNIT", ""))


def exposure_key(name: str) -> str:
    """
    Find what the names of all files of one exposure have in common.

    Parameters
    ----------
    name : str
        Name of a file, with or without folder.

    Returns
    -------
    str
        The name up to the detector, or without its suffix where it is not named like the telescope's files.
    """
    stem = Path(name).stem
    found = _NAME.match(stem)
    if found:
        return found[0]
    return (_CRF if _CRF.search(stem) else _SUFFIX).sub("", stem)


def find_mosaics(source: Path) -> list[Path]:
    """
    List the mosaics that a report is to be about, shortest filter first.

    Parameters
    ----------
    source : Path
        A mosaic or a folder.

    Returns
    -------
    list of Path
        At least one. Hidden folders, and mosaics of single exposures of stage 2, are left out.

    Raises
    ------
    FileNotFoundError
        If there is nothing there, or no mosaic.
    ValueError
        If a file is no mosaic.
    """
    if not source.exists():
        raise FileNotFoundError(
            f"{source} must be a mosaic (..._i2d.fits) or a folder, but there is no such file"
        )
    if not source.is_dir():
        _read_header(source)
        return [source]
    paths = [path for path in source.rglob("*_i2d.fits") if not _is_elsewhere(path.relative_to(source))]
    bands = {path: _band(path) for path in paths if not _NO_PRODUCT.fullmatch(path.name)}
    found = [path for path, band in bands.items() if band is not None]
    if not found:
        raise FileNotFoundError(f"{source} must hold at least 1 mosaic (..._i2d.fits), got none")
    return sorted(found, key=lambda path: (detector.wavelength(bands[path]), bands[path], str(path)))


def _band(path):
    """Read the filter of a mosaic; None of a file that is none, which must not stop the page about others."""
    try:
        return str(_read_header(path).get("FILTER", ""))
    except (OSError, ValueError) as error:
        log.warning("%s is left out: %s", path, error)
        return None


def _is_elsewhere(path):
    """Tell what is hidden, of single exposures, or was kept because its place was taken."""
    return any(part.startswith(".") or part in ("stage2", "kept") for part in path.parts)


def _read_header(path):
    """Read the header of a mosaic, and refuse what is none."""
    try:
        header = fits.getheader(path, 0)
        shape = fits.getheader(path, "SCI").get("NAXIS")
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} must be a mosaic of calwebb_image3 (..._i2d.fits): {error}") from error
    if header.get("INSTRUME") != "MIRI":
        raise ValueError(f"{path} must be a mosaic of MIRI, got INSTRUME {header.get('INSTRUME')}")
    if header.get("S_RESAMP") != "COMPLETE" or shape != 2:
        raise ValueError(
            f"{path} must be a mosaic that calwebb_image3 made (..._i2d.fits), but it has not been through "
            "resample: give the mosaic or its folder"
        )
    return header


def read_mosaic(path: Path) -> Mosaic:
    """
    Read a mosaic and the small files beside it.

    Parameters
    ----------
    path : Path
        The mosaic.

    Returns
    -------
    Mosaic
        What was found; what is missing is empty.
    """
    header = _read_header(path)
    with fits.open(path) as hdus:
        header.extend(hdus["SCI"].header, unique=True)
        image = np.array(hdus["SCI"].data, np.float32)
        listed = Table(hdus["HDRTAB"].data) if "HDRTAB" in hdus else Table()
        with warnings.catch_warnings():
            # Keywords of times and of the spacecraft's orbit are nothing that an image needs.
            warnings.simplefilter("ignore")
            wcs = WCS(hdus["SCI"].header).celestial
    product = path.stem.removesuffix("_i2d")
    association = _find_association(path, product, header)
    versions, references, lines = _read_metadata(path)
    beside = {name: read_table(path.with_name(f"{product}_{name}.ecsv")) for name in _TABLES}
    backgrounds = [_read_plane(each, "SCI", "NSAMPLE") for each in _beside(path, product, "background")]
    maps = [_read_plane(each, "SCI", "DQ") for each in _beside(path, product, "hot_pixels")]
    mosaic = Mosaic(
        path=path,
        header=header,
        image=image,
        wcs=wcs,
        exposures=_list_exposures(path, listed, association),
        association=association,
        versions=versions,
        references=references,
        tables={name: table for name, table in beside.items() if table is not None},
        detector_background=_read_plane(path.with_name(f"{product}_detector_background.fits"), "SCI"),
        super_backgrounds=[plane for plane in backgrounds if plane],
        hot_pixels=[plane for plane in maps if plane],
        log=logs.unique([*lines, *logs.read_files(path.parent)]),
    )
    _add_levels(mosaic)
    return mosaic


_TABLES = ("sky_levels", "sky_pairs", "tiles", "tile_exposures")


def _beside(path, product, suffix):
    """List the files of a product that have one suffix, but not those of a product with a longer name."""
    # Names of groups and windows are in lower case, and so may be the product in front of them.
    product, end = product.lower(), f"_{suffix}.fits"
    longer = [each.name.lower().removesuffix("i2d.fits") for each in path.parent.glob("*_i2d.fits")]
    found = []
    for each in sorted(path.parent.glob(f"*{end}")):
        name = each.name.lower()
        own = name.startswith(f"{product}_") and name != f"{product}_detector_background.fits"
        others = (len(other) > len(product) + 1 and name.startswith(other) for other in longer)
        if own and not any(others):
            found.append(each)
    return found


def _find_association(path, product, header):
    """Find the association beside the mosaic, above it, or in a folder next to its own."""
    names = filter(None, (f"{product}_asn.json", str(header.get("ASNTABLE", ""))))
    above = path.resolve().parent.parent
    found = []
    for name in dict.fromkeys(names):
        found += [path.parent / name, above / name, *sorted(above.glob(f"[!.]*/{name}"))]
    found = [each for each in found if each.is_file()]
    # Names in a copy of an association may lead nowhere.
    complete = (each for each in found if any(member.is_file() for member in _read_members(each)))
    return next(complete, next(iter(found), None))


def _read_members(association):
    """List the files of the science exposures that an association names."""
    try:
        products = json.loads(association.read_text())["products"]
        members = [member for product in products[:1] for member in product["members"]]
        names = [member["expname"] for member in members if member["exptype"].lower() == "science"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read: %s", association, error)
        return []
    return [association.parent / name for name in names]


def _list_exposures(path, listed, association):
    found: dict[str, Exposure] = {}
    for row in listed:
        name = str(row["FILENAME"]).strip()
        key = exposure_key(name)
        exposure = found[key] = Exposure(key)
        if name.endswith("_crf.fits") and (path.parent / name).is_file():
            exposure.after = path.parent / name
        _add_header(exposure, dict(zip(listed.colnames, row, strict=True)))
    for before in _read_members(association) if association else []:
        key = exposure_key(before.name)
        if listed and key not in found:
            # Another product's association of the same name, or an exposure that was left out.
            continue
        exposure = found.setdefault(key, Exposure(key))
        if before.is_file():
            exposure.before = before
            if not exposure.visit:
                _add_header(exposure, fits.getheader(before, 0))
    return sorted(found.values(), key=lambda exposure: (exposure.tile, exposure.key))


def _add_header(exposure, header):
    def word(keyword):
        return str(header.get(keyword, "")).strip()

    exposure.visit, exposure.guide_star, exposure.band = word("VISIT_ID"), word("GDSTARID"), word("FILTER")
    try:
        exposure.seconds = float(header.get("XPOSURE", header.get("EFFEXPTM", np.nan)))
    except (TypeError, ValueError):
        exposure.seconds = np.nan
    try:
        x, y, nx, ny = (int(header[key]) for key in ("SUBSTRT1", "SUBSTRT2", "SUBSIZE1", "SUBSIZE2"))
        exposure.frame = x - 1, y - 1, nx, ny
    except (KeyError, TypeError, ValueError):
        exposure.frame = 0, 0, 0, 0


def _read_metadata(path):
    """Read versions, reference files and logs of a mosaic."""
    with open_file(path) as model:
        flat = model.to_flat_dict(include_arrays=False)
        lines = [line for each in read_logs(model).values() for line in logs.read_lines(each)]
    references = {
        key.split(".")[2]: str(value)
        for key, value in sorted(flat.items())
        if key.startswith("meta.ref_file.") and key.endswith(".name") and value not in (None, "N/A")
    }
    versions = {
        "jwst": flat.get("meta.calibration_software_version"),
        "CRDS": flat.get("meta.ref_file.crds.sw_version"),
        "CRDS context": flat.get("meta.ref_file.crds.context_used"),
        "science data processing": flat.get("meta.data_processing_software_version"),
    }
    return {name: str(value) for name, value in versions.items() if value}, references, lines


def read_table(path: Path) -> Table | None:
    """
    Read a table that may be there.

    Parameters
    ----------
    path : Path
        Its file.

    Returns
    -------
    Table or None
        None where there is none, or none that can be read, which the log says.
    """
    if not path.is_file():
        return None
    try:
        return Table.read(path, format="ascii.ecsv")
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return None


def _read_plane(path, name, count=None):
    if not path.is_file():
        return None
    try:
        with fits.open(path) as hdus:
            data = np.array(hdus[name].data, np.float32)
            second = None if count is None else np.array(hdus[count].data)
            unit = str(hdus[name].header.get("BUNIT", ""))
            words = [hdus[0].header.get(key) for key in ("SUBARRAY", "READPATT")]
            built = hdus[0].header.get("NEXP")
    except (OSError, KeyError, TypeError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return None
    note = " ".join(str(word) for word in words if word)
    return Plane(path, data, unit, second, f"{note}, from {built} exposures" if built else note)


def _add_levels(mosaic):
    """Put the levels of the sky to their exposures."""
    known = {exposure.key: exposure for exposure in mosaic.exposures}
    table = mosaic.tables.get("sky_levels")
    for row in table if table is not None else []:
        exposure = known.get(exposure_key(str(row["exposure"])))
        if exposure is not None:
            exposure.level, exposure.level_error = (
                float(np.ma.filled(row[name], np.nan)) for name in ("level", "error")
            )


def pixel_side(mosaic: Mosaic) -> float:
    """
    Measure the side of a mosaic's pixels.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.

    Returns
    -------
    float
        The side [arcsec].
    """
    area = float(np.abs(np.linalg.det(mosaic.wcs.pixel_scale_matrix))) * 3600**2
    return np.sqrt(area) if area > 0 else detector.PIXEL_SCALE
