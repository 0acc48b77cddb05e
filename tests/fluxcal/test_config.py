"""Filters, subarrays and stars."""

import pytest

from miri_steps.fluxcal import config


def test_all_filters_of_the_imager_are_there():
    names = (
        "F560W F770W F1000W F1065C F1130W F1140C F1280W F1500W F1550C F1800W F2100W F2300C F2550W FND".split()
    )
    assert list(config.bands()) == names
    joins = [25, 25, 15, 15, 10, 15, 10, 10, 10, 10, 5, 10, 5, 5]
    assert [band.join / band.fwhm for band in config.bands().values()] == pytest.approx(joins)
    assert {band.name for band in config.bands().values() if band.is_coronagraphic} == {
        "F1065C", "F1140C", "F1550C", "F2300C",
    }  # fmt: skip


def test_a_filter_knows_its_numbers():
    band = config.band("f2550w")
    assert (band.fwhm, band.pivot, band.sigma) == (7.312, 25.365, 3.5)
    assert config.band("F560W").sigma == 3.0
    assert config.band("F2300C").subarrays == ("FULL", "MASKLYOT")
    with pytest.raises(ValueError, match="filter must be one of F560W, .*, got F444W"):
        config.band("F444W")


def test_transmissions_are_relative_to_the_reference():
    assert config.transmissions() == {
        "FULL": 1.02,
        "BRIGHTSKY": 1.025,
        "SUB256": 1,
        "SUB128": 1.02,
        "SUB64": 0.985,
    }
    assert config.transmissions()[config.REFERENCE_SUBARRAY] == 1


def test_in_pixel_mode_has_the_name_of_its_subarray():
    assert [config.subarray(name) for name in ("SUB128_IP", "sub64", "FULL", "MASK1550")] == [
        *("SUB128", "SUB64", "FULL", "MASK1550"),
    ]


@pytest.mark.parametrize(
    "name", ["2MASS J17571324+6703409", "J1757132", "j1757132", "2MASS-J17571324+6703409"]
)
def test_a_star_has_many_names(name):
    assert config.star(name) == config.Star("2MASS J17571324+6703409", "A dwarf")


def test_types_of_stars():
    assert config.star("BD+60-1753") == config.star("BD+60 1753") == config.Star("BD+60 1753", "A dwarf")
    assert config.star("10LAC").type == "hot"
    assert config.star("BD60 1753 ").name == config.star("BD60D1753").name == "BD+60 1753"
    assert config.star("eta01 Dor").name == "eta1 Dor"
    assert config.star("HD-38949") == config.Star("HD 38949", "solar analogue")
    assert config.star(" My star ") == config.Star("My star", "other")
    assert config.star("P330E") == config.Star("GSPC P330-E", "solar analogue")
    assert config.star("HD 1") == config.Star("HD 1", "other")


def test_names_of_what_is_given_are_those_here():
    assert config.by_band("losses", {"f770w": 1, "F1065C": 2}) == {"F770W": 1, "F1065C": 2}
    assert config.by_subarray("transmissions", {"sub64_ip": 0.97}) == {"SUB64": 0.97}
    with pytest.raises(ValueError, match="filter must be one of F560W, .*, got F444W"):
        config.by_band("losses", {"F444W": 1})
    with pytest.raises(ValueError, match="transmissions must hold SUB64 once, got SUB64, SUB64_IP"):
        config.by_subarray("transmissions", {"SUB64": 0.97, "SUB64_IP": 0.97})
