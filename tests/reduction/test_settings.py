"""What the stages of a reduction are told."""

import pytest

from miri_steps import parameters
from miri_steps.reduction import settings
from miri_steps.reduction.settings import Hook


def write(path, text):
    path.write_text(text)
    return path


def test_each_stage_has_a_file_of_the_package():
    stages = settings.read()

    assert list(stages) == ["detector1", "image2", "image3"]
    assert [stage.pipeline.class_alias for stage in stages.values()] == [
        "calwebb_detector1",
        "calwebb_image2",
        "calwebb_image3",
    ]
    assert stages["detector1"].hooks() == {"rate_from_rateints": Hook("rate_from_rateints")}
    assert stages["image2"].steps == {"resample": {"skip": True}}
    assert sorted(stages["image3"].hooks()) == [
        "median_hot_pixel",
        "pixel_skymatch",
        "super_background",
        "tile_astrometry",
    ]


def test_a_file_by_path_or_name_takes_the_place_of_its_stage(tmp_cwd):
    mine = parameters.copy("image3_deep", tmp_cwd / "mine.asdf")

    for given in ("image3_deep", "miri_image3_deep.asdf", mine, str(mine)):
        stages = settings.read([given])

        assert stages["image3"].hooks()["super_background"].parameters == {"passes": 2}
        assert stages["image2"] == settings.read()["image2"]


def test_hooks_of_others_stay_as_they_are(tmp_cwd):
    text = parameters.read("image3").replace("- miri_steps.SuperBackgroundStep", "- my.own.Step(level=1)")
    stage = settings.read([write(tmp_cwd / "mine.asdf", text)])["image3"]

    assert stage.steps["skymatch"]["pre_hooks"] == ["my.own.Step(level=1)"]
    assert "super_background" not in stage.hooks()


@pytest.mark.parametrize(
    "word", ["miri_steps.PixelSkyMatchStep", "miri_steps.steps.pixel_skymatch.PixelSkyMatchStep"]
)
def test_one_hook_may_be_written_without_a_list(word, tmp_cwd):
    text = parameters.read("image3").replace(
        "post_hooks:\n    - miri_steps.PixelSkyMatchStep", f"post_hooks: {word}"
    )
    text = text.replace("pre_hooks:\n    - miri_steps.SuperBackgroundStep", "pre_hooks: null")
    stage = settings.read([write(tmp_cwd / "mine.asdf", text)])["image3"]

    assert stage.steps["skymatch"]["post_hooks"] == [Hook("pixel_skymatch")]
    assert stage.steps["skymatch"]["pre_hooks"] == []


def test_two_hooks_of_a_class_keep_their_own_parameters(tmp_cwd):
    twice = "- miri_steps.SuperBackgroundStep(passes=2)\n    - miri_steps.SuperBackgroundStep(scaling='both')"
    text = parameters.read("image3").replace("- miri_steps.SuperBackgroundStep", twice)
    stage = settings.read([write(tmp_cwd / "mine.asdf", text)])["image3"]
    stage = stage.with_defaults({"super_background": {"save_background": True, "scaling": "none"}})

    assert stage.steps["skymatch"]["pre_hooks"] == [
        Hook("super_background", {"save_background": True, "scaling": "none", "passes": 2}),
        Hook("super_background", {"save_background": True, "scaling": "both"}),
    ]


def test_changes_reach_stock_steps_hooks_and_pipelines():
    stages = settings.read(
        changes={
            "pixel_skymatch.grouping": "visit",
            "resample.pixel_scale": "0.06",
            "image2.resample.skip": "false",
            "image3.in_memory": False,
            "flat_field.skip": True,
        }
    )

    assert stages["image3"].hooks()["pixel_skymatch"].parameters == {"grouping": "visit"}
    assert stages["image3"].steps["resample"] == {"pixel_scale": 0.06}
    assert stages["image2"].steps == {"resample": {"skip": False}, "flat_field": {"skip": True}}
    assert stages["image3"].parameters == {"in_memory": False}


def test_a_hook_that_is_told_to_skip_is_taken_out():
    changes = {"super_background.skip": "true", "super_background.passes": 2}
    stage = settings.read(changes=changes)["image3"]

    assert stage.steps["skymatch"]["pre_hooks"] == []
    assert "pixel_skymatch" in stage.hooks()


def test_a_parameter_of_a_hook_can_be_taken_back():
    stage = settings.read()["image3"].changed("tile_astrometry", save_corrections=None, fallback="none")

    assert stage.hooks()["tile_astrometry"].parameters == {"fallback": "none"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pixel_skymatch.groupin": "visit"},
            "pixel_skymatch.groupin=visit cannot be: Extra value 'groupin'",
        ),
        ({"super_background.passes": 7}, "super_background.passes=7 cannot be: .*too big"),
        ({"resample.pixel_scale": "abc"}, "resample.pixel_scale=abc cannot be: .*wrong type"),
        ({"image3.no_such": 1}, "image3.no_such=1 cannot be: Extra value"),
        (
            {"rate_from_rateints.sigma": 3, "rate_from_rateints.sigm": 3},
            "rate_from_rateints.sigm=3 cannot be: Extra value",
        ),
        ({"nothing.skip": True}, "the step of a change must be one of .*tweakreg.*, got 'nothing.skip'"),
        ({"image2.tweakreg.skip": True}, "must be one of assign_wcs, .*, got 'image2.tweakreg.skip'"),
        ({"super_background.skip": "ture"}, "super_background.skip=ture cannot be: .*wrong type"),
        ({"skip": True}, "a change must be step.parameter or stage.step.parameter, got 'skip'"),
        ({"resample.output_dir": "x"}, "output_dir is up to the reduction and cannot be set"),
        ({"tweakreg.post_hooks": "x"}, "post_hooks is up to the reduction"),
    ],
)
def test_changes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings.read(changes=changes)


@pytest.mark.parametrize(
    "parameter",
    [
        *("tile_astrometry.reference_catalog", "photom.override_photom", "super_background.mask_image"),
        "tweakreg.abs_refcat",
    ],
)
def test_files_that_parameters_name_must_be_there(parameter, tmp_cwd):
    with pytest.raises(FileNotFoundError, match=f"{parameter} must name a file, but there is no gone.fits"):
        settings.read(changes={parameter: "gone.fits"})

    (tmp_cwd / "here.ecsv").touch()
    settings.read(changes={parameter: "here"})
    none = {"photom.override_photom": "N/A", "tweakreg.abs_refcat": "GAIADR3"}
    settings.read(changes=none | {"tile_astrometry.corrections": "None"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class: jwst.pipeline.Spec2Pipeline", "class of .* must be one of Detector1Pipeline, .*, got Spec2"),
        ("no parameters at all", "cannot be read as a parameter file"),
    ],
)
def test_files_of_another_kind_are_refused(text, message, tmp_cwd):
    whole = parameters.read("image3").replace("class: jwst.pipeline.Image3Pipeline", text)
    path = write(tmp_cwd / "mine.asdf", whole if text.startswith("class") else text)

    with pytest.raises(ValueError, match=message):
        settings.read([path])


def test_two_files_for_one_stage_are_refused():
    with pytest.raises(
        ValueError, match="one parameter file per stage, but image3_deep is another for image3"
    ):
        settings.read(["image3", "image3_deep"])


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("miri_steps.PixelSkymatch", "must be one of .*PixelSkyMatchStep.*, got PixelSkymatch"),
        ("miri_steps.PixelSkyMatchStep(grouping=visit)", "must be a class with parameters, got"),
        ("miri_steps.PixelSkyMatchStep('visit')", "must be a class with parameters, got"),
        ("miri_steps.PixelSkyMatchStep(output_dir='here')", "output_dir is up to the reduction.*got here"),
        ("miri_steps.PixelSkyMatchStep(order=3)", "pixel_skymatch.order=3 cannot be"),
    ],
)
def test_hooks_that_cannot_be_made_are_refused(hook, message, tmp_cwd):
    text = parameters.read("image3").replace("- miri_steps.PixelSkyMatchStep", f"- {hook}")

    with pytest.raises(ValueError, match=message):
        settings.read([write(tmp_cwd / "mine.asdf", text)])
