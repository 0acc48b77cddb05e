"""Files that `SuperBackgroundStep` writes beside its exposures, and reads again."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from jwst.associations.asn_from_list import asn_from_list

from miri_steps import __version__, whole_files
from miri_steps.steps.super_background_members import Group, same_background

__all__ = ["SavedBackground", "read_background", "save_background", "write_association"]

# Keywords that say whose background it is, and where they are in the metadata.
_KEYWORDS = {
    "FILTER": "instrument.filter",
    "DETECTOR": "instrument.detector",
    "SUBARRAY": "subarray.name",
    "SUBSTRT1": "subarray.xstart",
    "SUBSTRT2": "subarray.ystart",
    "SUBSIZE1": "subarray.xsize",
    "SUBSIZE2": "subarray.ysize",
    "READPATT": "exposure.readpatt",
    "EFFEXPTM": "exposure.exposure_time",
    "S_BKDSUB": "cal_step.bkg_sub",
    "DETSUB": "background.detector_subtracted",
}


@dataclass(frozen=True)
class SavedBackground:
    """
    A background as it was saved.

    Parameters
    ----------
    path : Path
        Its file.
    value, variance : ndarray
        Background and its variance, shape (ny, nx) [unit of the data, and squared].
    count : ndarray
        Number of samples.
    meta : dict
        Whose background it is, keyed ``meta.a.b``.
    exposures : tuple of str
        Names of the exposures that it was built from.
    """

    path: Path
    value: np.ndarray
    variance: np.ndarray
    count: np.ndarray
    meta: dict
    exposures: tuple[str, ...]

    def fits(self, group: Group) -> bool:
        """Tell whether it is the background of a group."""
        return same_background(self.meta, group.members[0].meta)


def save_background(path: str, group: Group, value, variance, count, levels) -> None:
    """
    Write the background of a group.

    Parameters
    ----------
    path : str
        File to write.
    group : Group
        Its exposures.
    value, variance, count : ndarray
        Background, its variance and number of samples, shape (ny, nx).
    levels : Levels
        How the exposures that it was built from follow it.
    """
    first = group.members[0]
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"], primary.header["INSTRUME"] = "JWST", "MIRI"
    for keyword, key in _KEYWORDS.items():
        if first.meta.get(f"meta.{key}") is not None:
            primary.header[keyword] = first.meta[f"meta.{key}"]
    primary.header["NEXP"] = int(np.isfinite(levels.level).sum()), "Exposures it was built from"
    primary.header["HISTORY"] = f"miri_steps {__version__} SuperBackgroundStep"
    used = np.isfinite(levels.level)
    names = np.array([member.name for member in group.builders])
    table = Table({"exposure": names[used], "factor": levels.factor[used], "level": levels.level[used]})
    image = fits.ImageHDU(value.astype(np.float32), name="SCI")
    image.header["BUNIT"] = first.meta.get("meta.bunit_data") or ""
    hdus = fits.HDUList(
        [
            primary,
            image,
            fits.ImageHDU(np.sqrt(variance).astype(np.float32), name="ERR"),
            fits.ImageHDU(count.astype(np.int16), name="NSAMPLE"),
            fits.BinTableHDU(table, name="EXPOSURES"),
        ]
    )
    whole_files.replace(Path(path), hdus.writeto)


def read_background(path: str | Path) -> SavedBackground:
    """
    Read a background that was saved.

    Parameters
    ----------
    path : str or Path
        Its file.

    Returns
    -------
    SavedBackground
        The background.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a background that this Step saved.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"background_file {path} must be a saved background, but there is no such file"
        )
    try:
        with fits.open(path) as hdus:
            header = hdus[0].header
            meta = {f"meta.{key}": header.get(keyword) for keyword, key in _KEYWORDS.items()}
            meta["meta.bunit_data"] = hdus["SCI"].header["BUNIT"] or None
            return SavedBackground(
                path=path,
                value=np.array(hdus["SCI"].data, np.float32),
                variance=np.array(hdus["ERR"].data, float) ** 2,
                count=np.array(hdus["NSAMPLE"].data, np.uint16),
                meta=meta,
                exposures=tuple(str(name).strip() for name in hdus["EXPOSURES"].data["exposure"]),
            )
    except (OSError, KeyError) as error:
        raise ValueError(
            f"background_file {path} must be a background that SuperBackgroundStep saved: {error}"
        ) from error


def write_association(path: str, product: str, files: list[str], former: dict) -> None:
    """
    Write an association of the exposures that were saved, so that calwebb_image3 can go on with it.

    Parameters
    ----------
    path : str
        File to write.
    product : str
        Name of the mosaic.
    files : list of str
        Files of the exposures; the association names them without their folder.
    former : dict
        The association that they came in; its identifiers are kept.
    """
    association = asn_from_list([Path(name).name for name in files], product_name=product)
    kept = {key: former[key] for key in ("asn_id", "program", "target") if former.get(key)}
    content = json.loads(association.dump()[1]) | kept
    whole_files.replace(Path(path), lambda temporary: temporary.write_text(json.dumps(content, indent=4)))
