"""Catalogues are read whatever they look like, and their stars move as they do in the sky."""

import logging
import warnings

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time
from erfa import ErfaWarning

from miri_steps.steps import reference_stars

RA, DEC = np.array([10.0, 20.5, 359.9]), np.array([-5.0, 30.0, 89.0])
# MJD of J2016.0 and J2026.0.
MJD_2016, MJD_2026 = 57388.5, 61041.0


@pytest.fixture
def save(tmp_path):
    """Save a table of these columns; three stars unless told otherwise."""

    def write(name="stars.ecsv", meta=None, table=Table, **columns):
        path = tmp_path / name
        table({"ra": RA, "dec": DEC, **columns} if "ra" not in columns else columns, meta=meta).write(path)
        return path

    return write


# ---- tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stars.ecsv", "stars.fits", "stars.xml", "stars.csv"])
def test_any_table_is_read(save, name):
    if name.endswith("xml"):
        path = save("stars.ecsv").with_name(name)
        Table({"ra": RA, "dec": DEC}).write(path, format="votable")
    else:
        path = save(name)

    stars = reference_stars.read(path)

    assert len(stars) == 3
    np.testing.assert_allclose(stars.at(MJD_2026), [RA, DEC], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("ra", "dec"), [("RA", "DEC"), ("Ra", "dec"), ("ra", "Dec")])
def test_columns_may_have_any_case(tmp_path, ra, dec):
    Table({ra: RA, dec: DEC}).write(tmp_path / "stars.ecsv")

    np.testing.assert_allclose(reference_stars.read(tmp_path / "stars.ecsv").ra, RA)


def test_columns_may_have_the_names_of_vizier(tmp_path):
    table = Table({"RA_ICRS": [10.0], "DE_ICRS": [-20.0], "pmRA": [3.0], "pmDE": [4.0], "Gmag": [15.0]})
    table.write(tmp_path / "vizier.ecsv")

    stars = reference_stars.read(tmp_path / "vizier.ecsv", epoch=2016.0, max_magnitude=16)

    assert [*stars.ra, *stars.dec, *stars.pmra, *stars.pmdec] == [10.0, -20.0, 3.0, 4.0]


@pytest.mark.parametrize("table", [Table, QTable])
def test_units_are_honoured(tmp_path, table):
    columns = {"ra": (RA * units.deg).to(units.hourangle), "dec": (DEC * units.deg).to(units.rad)}
    motion = {"pmra": [1.0, 0, 0] * units.arcsec / units.yr, "pmdec": [0, 2.0, 0] * units.arcsec / units.yr}
    table({**columns, **motion}, meta={"epoch": 2016.0}).write(tmp_path / "stars.ecsv")

    stars = reference_stars.read(tmp_path / "stars.ecsv")

    np.testing.assert_allclose([stars.ra, stars.dec], [RA, DEC])
    np.testing.assert_allclose([stars.pmra, stars.pmdec], [[1000, 0, 0], [0, 2000, 0]])


def test_catalogues_of_the_pipeline_are_read(tmp_path):
    columns = {"label": [1, 2, 3], "sky_centroid": SkyCoord(RA, DEC, unit="deg")}
    QTable({**columns, "aper_total_abmag": [20.0, 25.0, np.nan]}).write(tmp_path / "x_cat.ecsv")

    np.testing.assert_allclose(reference_stars.read(tmp_path / "x_cat.ecsv").at(MJD_2026), [RA, DEC])
    assert len(reference_stars.read(tmp_path / "x_cat.ecsv", max_magnitude=22)) == 1


def test_negative_right_ascensions_are_the_same_ones(save):
    stars = reference_stars.read(save(ra=[-10.0, 5.0], dec=[0.0, 0.0]))

    np.testing.assert_allclose(stars.ra, [350.0, 5.0])


def test_stars_without_position_are_left_out(save, caplog):
    path = save(ra=[10.0, np.nan, 30.0], dec=[1.0, 2.0, np.inf])
    with caplog.at_level(logging.INFO, "stpipe"):
        stars = reference_stars.read(path)

    np.testing.assert_allclose(stars.ra, [10.0])
    assert "2 of 3 stars have no position" in caplog.text


# ---- motion -----------------------------------------------------------------------------------------------


def test_stars_move_as_in_astropy():
    """Barnard's star, one beside each pole, one across RA 0, and a quiet one: over 30 years."""
    ra = np.array([269.45, 10.0, 200.0, 0.00001, 339.0])
    dec = np.array([4.69, 89.9999, -89.99995, 20.0, 34.0])
    pmra, pmdec = np.array([-801.6, 5000, -300, -2000, 5.0]), np.array([10362.4, 100, 900, 0, -3.0])
    stars = reference_stars.ReferenceStars("x", ra, dec, pmra, pmdec, np.full(5, 2016.0))
    rate = units.mas / units.yr
    start, end = (Time(year, format="jyear", scale="tcb") for year in (2016.0, 2046.0))
    sky = SkyCoord(ra, dec, unit="deg", pm_ra_cosdec=pmra * rate, pm_dec=pmdec * rate, obstime=start)
    with warnings.catch_warnings():
        # It says that the distance is not known.
        warnings.simplefilter("ignore", ErfaWarning)
        there = sky.apply_space_motion(new_obstime=end)

    here = SkyCoord(*stars.at(end), unit="deg")

    assert here.separation(SkyCoord(there.ra, there.dec)).arcsec.max() < 1e-5
    assert here[0].separation(sky[0]).arcsec == pytest.approx(30 * 10.393, rel=1e-4)


def test_a_date_is_an_mjd_or_a_time(save):
    path = save(pmra=[100.0, 0, 0], pmdec=[0.0, 100.0, 0], ref_epoch=np.full(3, 2016.0))
    stars = reference_stars.read(path)

    ra, dec = stars.at(MJD_2026)

    cosine = np.cos(np.radians(DEC[0]))
    np.testing.assert_allclose((ra - RA) * 3.6e6, [1000 / cosine, 0, 0], atol=0.01)
    np.testing.assert_allclose((dec - DEC) * 3.6e6, [0, 1000, 0], atol=0.01)
    np.testing.assert_array_equal(stars.at(Time(MJD_2026, format="mjd")), [ra, dec])
    np.testing.assert_allclose(stars.at(MJD_2016), [RA, DEC], atol=1e-12)
    with pytest.raises(ValueError, match="date must be a finite MJD, got nan"):
        stars.at(np.nan)


def test_stars_without_a_motion_stay(save):
    motion = MaskedColumn([100.0, 100.0, np.nan], mask=[False, True, False])
    stars = reference_stars.read(save(pmra=motion, pmdec=np.full(3, 50.0), epoch=np.full(3, 2016.0)))

    np.testing.assert_allclose([stars.pmra, stars.pmdec], [[100, 0, 0], [50, 0, 0]])


@pytest.mark.parametrize("given", [2016.0, "2016.0", "J2016.0", Time(2016.0, format="jyear")])
def test_the_epoch_that_is_given_comes_first(save, given):
    path = save(pmra=np.ones(3), pmdec=np.ones(3), ref_epoch=np.full(3, 1991.25))

    np.testing.assert_allclose(reference_stars.read(path, epoch=given).epoch, 2016.0)
    np.testing.assert_allclose(reference_stars.read(path).epoch, 1991.25)


@pytest.mark.parametrize("key", ["epoch", "ref_epoch", "REF_EPOCH"])
def test_the_epoch_may_be_in_the_header(save, key):
    path = save("stars.ecsv", meta={key: 2015.5}, pmra=np.ones(3), pmdec=np.ones(3))

    np.testing.assert_allclose(reference_stars.read(path).epoch, 2015.5)


# ---- magnitudes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["phot_g_mean_mag", "mag", "Mag", "isophotal_abmag"])
def test_faint_stars_and_those_without_magnitude_are_left_out(save, name):
    path = save(**{name: [15.0, np.nan, 18.0]})

    np.testing.assert_allclose(reference_stars.read(path, max_magnitude=20).ra, RA[[0, 2]])
    np.testing.assert_allclose(reference_stars.read(path, max_magnitude=15).ra, RA[[0]])
    assert len(reference_stars.read(path)) == 3


def test_a_magnitude_column_may_be_named(save):
    path = save(mag=np.full(3, 10.0), F560W=[15.0, 16.0, 17.0])

    stars = reference_stars.read(path, max_magnitude=16, magnitude_column="f560w")

    np.testing.assert_allclose(stars.ra, RA[:2])


# ---- what is refused --------------------------------------------------------------------------------------


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="reference_catalog must be a file, got .*nowhere.ecsv"):
        reference_stars.read(tmp_path / "nowhere.ecsv")


def test_what_is_no_table_is_told(tmp_path):
    for name in ("stars.fits", "stars.ecsv", "stars.unknown"):
        (tmp_path / name).write_text("once upon a time\nthere were; stars")
        with pytest.raises(ValueError, match="stars"):
            reference_stars.read(tmp_path / name)


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        (
            {"ra": [1.0], "Decl": [2.0]},
            r"must have columns RA and Dec, or sky_centroid, got \['ra', 'Decl'\]",
        ),
        ({"ra": [1.0], "RA": [1.0], "dec": [2.0]}, r"must have one column ra, got \['ra', 'RA'\]"),
        ({"ra": ["1h"], "dec": [2.0]}, "column ra of .* must be numbers in deg or the like"),
        (
            {"ra": [1.0] * units.m, "dec": [2.0]},
            "column ra of .* must be numbers in deg or the like, got unit m",
        ),
        ({"ra": [1.0], "dec": [92.0]}, "Dec of .* must be -90 to 90 deg, got 92"),
        ({"ra": [400.0], "dec": [9.0]}, "RA of .* must be -180 to 360 deg, got 400"),
        ({"ra": [np.nan], "dec": [9.0]}, "must have stars, got none of 1"),
        (
            {"ra": [1.0], "dec": [9.0], "pmra": [1.0]},
            "must have both pmra and pmdec or none of them, got pmra",
        ),
        ({"ra": [1.0], "dec": [9.0], "pmra": [1.0], "pmdec": [1.0]}, "epoch must be given, or a column or"),
        ({"ra": [1.0], "dec": [9.0], "epoch": [57388.0]}, "Julian year between 1850 and 2150, got 57388"),
    ],
)
def test_tables_that_cannot_be_understood_are_told(tmp_path, columns, rule):
    Table(columns).write(tmp_path / "stars.ecsv")

    with pytest.raises(ValueError, match=rule):
        reference_stars.read(tmp_path / "stars.ecsv")


def test_wrong_parameters_are_told(save):
    path = save(mag=[15.0, 16, 17], abmag=[15.0, 16, 17])
    with pytest.raises(ValueError, match="magnitude_column must be given .*'mag', 'abmag'.*'ra', 'dec'"):
        reference_stars.read(path, max_magnitude=20)
    with pytest.raises(ValueError, match="magnitude_column must be a column of .*, got 'K'; its columns are"):
        reference_stars.read(path, magnitude_column="K")
    with pytest.raises(ValueError, match="must have stars with a magnitude up to 3, got none of 3"):
        reference_stars.read(path, max_magnitude=3, magnitude_column="mag")
    with pytest.raises(ValueError, match="epoch must be a Julian year, as 2016.0, got 'new'"):
        reference_stars.read(path, epoch="new")
    with pytest.raises(ValueError, match="magnitude_column must be given .* has none of"):
        reference_stars.read(save("other.ecsv"), max_magnitude=20)


# ---- the real thing ---------------------------------------------------------------------------------------


def test_a_real_gaia_table_is_read_without_a_warning(shared_data):
    path = shared_data / "gaia" / "Gaia_DR3_NGC7320.fits"

    stars, bright = reference_stars.read(path), reference_stars.read(path, max_magnitude=18)

    assert len(stars) == 1153
    assert (stars.epoch == 2016.0).all()
    # Those that Gaia has no motion for.
    assert ((stars.pmra == 0) & (stars.pmdec == 0)).sum() == 128
    assert 200 < len(bright) < 600
    ra, dec = stars.at(59762.0)
    moved = np.hypot((ra - stars.ra) * np.cos(np.radians(dec)), dec - stars.dec) * 3.6e6
    years = (59762.0 - MJD_2016) / 365.25
    np.testing.assert_allclose(moved, years * np.hypot(stars.pmra, stars.pmdec), rtol=1e-4, atol=1e-3)
