"""The contract that every Step keeps (design page, section 5), for the whole family of Steps."""

import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from jwst import datamodels
from jwst.datamodels import ModelContainer, ModelLibrary
from jwst.outlier_detection import OutlierDetectionStep
from jwst.resample import ResampleStep
from stdatamodels import asdf_in_fits

import miri_steps
from miri_steps import plugin


@dataclass(frozen=True)
class Case:
    """
    A Step and how to put it to work.

    Parameters
    ----------
    name : str
        Class.
    field : str
        Fixture with the exposures it works on.
    parameters : dict
        Parameters with which it changes the data.
    changed : tuple of str
        Planes that it may change, and "sky" where pixels look.
    says_done : str
        What it says when it finds its own product.
    place : str, optional
        Parameter that names the folder of the exposures, of which open models know nothing.
    fixed : dict
        Parameters that change no number.
    cleared : tuple of str
        Flags that it takes away from the pixels it fills, which then are FLUX_ESTIMATED.
    beside : tuple of str
        Files that it writes beside the exposures, for the product "field".
    """

    name: str
    field: str
    parameters: dict = field(default_factory=dict)
    changed: tuple[str, ...] = ("data",)
    says_done: str = "done before"
    place: str | None = None
    fixed: dict = field(default_factory=dict)
    cleared: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def step(self):
        return getattr(miri_steps, self.name)

    def call(self, given, **parameters):
        return self.step.call(given, **(self.fixed | self.parameters | parameters))


CASES = [
    Case(
        "PixelSkyMatchStep",
        "ring",
        {"subtract": True},
        says_done="matched and subtracted before",
    ),
    Case(
        "RateFromRateintsStep",
        "integrated",
        {"sigma": 4.0},
        changed=("data", "err", "dq", "var_poisson", "var_rnoise"),
        place="rateints",
    ),
    Case(
        "MedianHotPixelStep",
        "spotted",
        {"sigma": 6.0},
        changed=("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat"),
        cleared=("DO_NOT_USE",),
    ),
    Case(
        "SuperBackgroundStep",
        "dusty",
        {"source_sigma": 4.0},
        changed=("data", "err", "var_poisson", "var_rnoise"),
        beside=("field_super_background_asn.json",),
    ),
    Case("TileAstrometryStep", "askew", {"sigma": 4.0}, changed=("sky",)),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    if request.param.place is None:
        return request.param
    folder = request.getfixturevalue(request.param.field).association.parent
    return replace(request.param, fixed={request.param.place: str(folder)})


@pytest.fixture
def exposures(case, request):
    return request.getfixturevalue(case.field)


def fingerprints(paths):
    return {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def assert_same(first, second):
    """Hold two sets of planes, or of levels, to be equal bit for bit and in the same order."""
    assert list(first) == list(second)
    for name in first:
        if isinstance(first[name], dict):
            assert_same(first[name], second[name])
        else:
            np.testing.assert_array_equal(first[name], second[name], err_msg=str(name))


def test_every_step_has_a_case():
    assert {case.step.class_alias for case in CASES} == {alias for _, alias, _ in plugin.get_steps()}


# 1 Input


def as_association(field, opened):
    return str(field.association)


def as_path(field, opened):
    return field.association


def as_dictionary(field, opened):
    return field.dictionary()


def as_file_names(field, opened):
    return field.files


def as_models(field, opened):
    return opened(field.files)


def as_container(field, opened):
    return ModelContainer(opened(field.files))


def as_library(field, opened):
    return ModelLibrary(field.dictionary(), on_disk=False)


def as_library_on_disk(field, opened):
    return ModelLibrary(field.dictionary(), on_disk=True)


WAYS = {
    as_association: ModelLibrary,
    as_path: ModelLibrary,
    as_dictionary: ModelLibrary,
    as_file_names: ModelLibrary,
    as_models: ModelContainer,
    as_container: ModelContainer,
    as_library: ModelLibrary,
    as_library_on_disk: ModelLibrary,
}


@pytest.fixture(scope="module")
def reference(request, planes_of):
    """What a Step makes of the association, once per Step."""
    results = {}

    def run(case, field):
        if case.name not in results:
            results[case.name] = planes_of(case.call(str(field.association)))
        return results[case.name]

    return run


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_kind_of_input_gives_the_same_numbers_in_its_own_kind_and_order(
    way, case, exposures, opened, planes_of, reference
):
    result = case.call(way(exposures, opened))

    assert isinstance(result, WAYS[way])
    planes = planes_of(result)
    assert list(planes) == exposures.names
    assert_same(planes, reference(case, exposures))


def test_one_exposure_comes_back_as_one_exposure(case, exposures, opened):
    for given in (exposures.files[0], Path(exposures.files[0]), opened(exposures.files[:1])[0]):
        with case.call(given) as result:
            assert type(result) is datamodels.ImageModel
            assert result is not given
            assert result.meta.filename == exposures.names[0]


@pytest.mark.parametrize("shuffle", [lambda n: np.arange(n)[::-1], lambda n: np.roll(np.arange(n), 2)])
def test_the_order_of_members_changes_nothing(shuffle, case, exposures, opened, planes_of, reference):
    order = shuffle(len(exposures.files))
    files = [exposures.files[k] for k in order]

    planes = planes_of(case.call(exposures.dictionary(files)))
    from_models = planes_of(case.call(opened(files)))

    expected = reference(case, exposures)
    assert_same(planes, {exposures.names[k]: expected[exposures.names[k]] for k in order})
    assert_same(from_models, planes)


# 2 Output


def test_only_the_planes_it_corrects_change(case, exposures, opened, planes_of, reference):
    before = planes_of(opened(exposures.files))
    after = reference(case, exposures)

    different = set()
    for name in before:
        for plane in before[name]:
            kinds = [planes[name][plane].dtype.newbyteorder("=") for planes in (before, after)]
            assert kinds[0] == kinds[1]
            if not np.array_equal(before[name][plane], after[name][plane], equal_nan=plane != "dq"):
                different.add(plane)
        lost = before[name]["dq"] & ~after[name]["dq"]
        filled = (after[name]["dq"] & datamodels.dqflags.pixel["FLUX_ESTIMATED"]) > 0
        cleared = sum(datamodels.dqflags.pixel[flag] for flag in case.cleared)
        assert not (lost[filled] & ~np.uint32(cleared)).any(), "flags are added, never taken away"
        assert not lost[~filled].any(), "flags are added, never taken away"
        assert lost.any() == bool(case.cleared)
        np.testing.assert_array_equal(
            np.isnan(after[name]["data"]), (after[name]["dq"] & datamodels.dqflags.pixel["DO_NOT_USE"]) > 0
        )
    assert different == set(case.changed)


def test_input_models_stay_as_they_were(case, exposures, opened, planes_of):
    models = opened(exposures.files)
    before = planes_of(models)
    described = [model.to_flat_dict(include_arrays=False) for model in models]

    result = case.call(models)

    assert_same(planes_of(models), before)
    assert [model.to_flat_dict(include_arrays=False) for model in models] == described
    assert not {id(model) for model in models} & {id(model) for model in result}


def test_a_library_is_handed_on_and_not_copied(case, exposures):
    library = ModelLibrary(exposures.dictionary(), on_disk=False)

    assert case.call(library) is library


def test_stock_steps_take_the_result(case, exposures):
    result = case.call(str(exposures.association))

    cleaned = OutlierDetectionStep.call(result, save_intermediate_results=False)
    mosaic = ResampleStep.call(cleaned)

    assert mosaic.meta.cal_step.outlier_detection == "COMPLETE"
    assert mosaic.meta.cal_step.resample == "COMPLETE"
    assert np.isfinite(mosaic.data).mean() > 0.5
    mosaic.close()


# 3 Files


def test_nothing_lands_in_the_working_directory(case, exposures, tmp_cwd):
    before = fingerprints(exposures.association.parent.iterdir())

    for in_memory in (True, False):
        result = case.call(str(exposures.association), in_memory=in_memory)
        del result

    assert not list(tmp_cwd.iterdir())
    assert fingerprints(exposures.association.parent.iterdir()) == before


def test_products_carry_the_alias_as_their_one_suffix_and_inputs_are_not_overwritten(
    case, exposures, tmp_cwd, planes_of, reference
):
    before = fingerprints(exposures.association.parent.iterdir())
    alias = case.step.class_alias
    products = [f"{name.rpartition('_')[0]}_{alias}.fits" for name in exposures.names]

    case.call(str(exposures.association), save_results=True, output_dir="first")

    assert sorted(path.name for path in (tmp_cwd / "first").iterdir()) == sorted([*products, *case.beside])
    files = [str(tmp_cwd / "first" / name) for name in products]
    first = fingerprints(files)
    reread = {}
    for name, path in zip(exposures.names, files, strict=True):
        with datamodels.open(path) as model:
            assert model.meta.filename == Path(path).name
            model.meta.filename = name
            reread |= planes_of(model)
    assert_same(reread, reference(case, exposures))

    case.call(exposures.dictionary(files), save_results=True, output_dir="second")

    assert sorted(path.name for path in (tmp_cwd / "second").iterdir()) == sorted([*products, *case.beside])
    assert sorted(path.name for path in tmp_cwd.iterdir()) == ["first", "second"]
    assert fingerprints(files) == first
    assert fingerprints(exposures.association.parent.iterdir()) == before


# 4 Twice


def metadata(library, index):
    """Everything but the log, which stpipe keeps there too."""
    flat = library.read_metadata(index)
    return {key: str(value) for key, value in flat.items() if not key.startswith("cal_logs.")}


def test_a_second_run_changes_nothing_and_says_so(case, exposures, planes_of, caplog):
    library = case.call(str(exposures.association))
    first = planes_of(library)
    described = [metadata(library, k) for k in range(len(library))]
    caplog.clear()

    second = case.call(library)

    assert_same(planes_of(second), first)
    assert [metadata(library, k) for k in range(len(library))] == described
    assert case.says_done in caplog.text


def test_a_second_run_on_saved_products_changes_nothing_and_says_so(
    case, exposures, tmp_cwd, planes_of, caplog
):
    case.call(str(exposures.association), save_results=True, output_dir="first")
    files = sorted(map(str, (tmp_cwd / "first").glob("*.fits")))
    before = {}
    for name in files:
        with datamodels.open(name) as model:
            before |= planes_of(model)
    for in_memory in (True, False):
        caplog.clear()

        again = case.call(exposures.dictionary(files), in_memory=in_memory)

        assert_same(planes_of(again), before)
        assert case.says_done in caplog.text


# 5 Provenance


def test_status_and_history_are_in_the_file(case, exposures, tmp_cwd):
    alias = case.step.class_alias
    case.call(str(exposures.association), save_results=True)

    for path in sorted(tmp_cwd.glob("*.fits")):
        with datamodels.open(path) as model:
            assert getattr(model.meta.cal_step, alias) == "COMPLETE"
        with asdf_in_fits.open(path) as file:
            entries = [dict(entry) for entry in file.get_history_entries()]
        ours = [entry for entry in entries if case.name in entry["description"]]
        assert len(ours) == 1
        for name, value in case.parameters.items():
            assert f"{name}={value}" in ours[0]["description"]
        assert ours[0]["software"]["name"] == "miri_steps"
        assert ours[0]["software"]["version"] == miri_steps.__version__
        with fits.open(path) as hdus:
            history = "".join(hdus[0].header["HISTORY"])
        assert case.name in history
        for name, value in case.parameters.items():
            assert f"{name}={value}" in history


def test_the_history_in_the_fits_header_names_the_version(case, exposures, tmp_cwd):
    case.call(str(exposures.association), save_results=True)

    header = fits.getheader(next(iter(sorted(tmp_cwd.glob("*.fits")))))
    assert f"miri_steps {miri_steps.__version__}" in "".join(header["HISTORY"])


# 6 Memory


def test_on_disk_gives_the_same_numbers_and_tells_its_progress(case, exposures, planes_of, reference, caplog):
    on_disk = case.call(str(exposures.association), in_memory=False)

    assert on_disk.on_disk
    for number, name in enumerate(exposures.names, start=1):
        assert any(
            f"{number}/{len(exposures.names)}" in record.getMessage() and name in record.getMessage()
            for record in caplog.records
        )
    assert_same(planes_of(on_disk), reference(case, exposures))


def test_in_memory_false_holds_one_exposure_at_a_time(case, exposures, monkeypatch):
    """Count the exposures that are borrowed and not yet given back."""
    out, most = set(), []
    borrow, shelve = ModelLibrary.borrow, ModelLibrary.shelve

    def counted_borrow(self, index):
        model = borrow(self, index)
        out.add(index)
        most.append(len(out))
        return model

    def counted_shelve(self, model, index=None, modify=True):
        known = index if index is not None else next(iter(out))
        shelve(self, model, index, modify)
        out.discard(known)

    monkeypatch.setattr(ModelLibrary, "borrow", counted_borrow)
    monkeypatch.setattr(ModelLibrary, "shelve", counted_shelve)

    case.call(str(exposures.association), in_memory=False)

    assert most
    assert max(most) == 1


# 7 What it refuses


@pytest.mark.parametrize("exp_type", ["MIR_MRS", "NRC_IMAGE", "MIR_LRS-FIXEDSLIT"])
def test_other_modes_are_refused_by_name(exp_type, case, exposures, opened, tmp_cwd):
    models = opened(exposures.files[:2])
    models[1].meta.exposure.type = exp_type

    with pytest.raises(ValueError, match=f"{exposures.names[1]}.*MIR_IMAGE.*got {exp_type}"):
        case.call(models, save_results=True)

    assert not list(tmp_cwd.iterdir())


@pytest.mark.parametrize("given, message", [(None, "got NoneType"), (3, "got int")])
def test_what_is_no_input_at_all_is_refused(given, message, case):
    with pytest.raises(TypeError, match=f"the input must be a file name, a model.*{message}"):
        case.step().run(given)


def test_a_dictionary_that_is_no_association_is_refused(case):
    with pytest.raises(ValueError, match=r"must have a product with members, got the keys \['exposures'\]"):
        case.step().run({"exposures": []})


def test_a_missing_file_is_named(case, exposures):
    asn = exposures.dictionary([exposures.files[0], str(Path(exposures.files[1]).with_name("gone_cal.fits"))])

    with pytest.raises(FileNotFoundError, match="gone_cal.fits"):
        case.call(asn)


def test_a_wrong_parameter_is_refused_by_name(case, exposures):
    with pytest.raises(Exception, match="no_such_parameter"):
        case.call(str(exposures.association), no_such_parameter=1)


def test_only_science_members_are_read(case, exposures, planes_of):
    """An association may carry members of other types, which need not be images."""
    asn = exposures.dictionary()
    asn["products"][0]["members"].append({"expname": "catalog.ecsv", "exptype": "sourcecat"})

    result = case.call(asn)

    assert list(planes_of(result)) == exposures.names


def test_log_lines_are_under_stpipe(case, exposures, caplog):
    """Only such loggers are heard inside the stock pipelines."""
    case.call(str(exposures.association))

    ours = [record for record in caplog.records if "miri_steps" in record.name]
    assert ours
    assert all(record.name.startswith("stpipe.") for record in ours)
    assert any(record.levelno >= logging.INFO for record in ours)
