"""The contract that every Step keeps (design page, section 5), for the whole family of Steps."""

import contextlib
import hashlib
import logging
import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import asdf
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
        "row",
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
        "striped",
        {"source_sigma": 4.0, "min_exposures": 4},
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
    """What gives a table, and changes no exposure, has tests of its own."""
    others = {alias for _, alias, _ in plugin.get_steps()} - {"star_photometry"}
    assert {case.step.class_alias for case in CASES} == others


# What is run once


class Records(logging.Handler):
    """Keep what is logged."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def emit(self, record):
        self.kept.append(record)

    def __enter__(self):
        logging.getLogger().addHandler(self)
        return self.kept

    def __exit__(self, *_):
        logging.getLogger().removeHandler(self)


@contextlib.contextmanager
def borrowed():
    """Count the exposures that are borrowed from a library and not yet given back."""
    out, counts = set(), []
    borrow, shelve = ModelLibrary.borrow, ModelLibrary.shelve

    def counted_borrow(self, index):
        model = borrow(self, index)
        out.add(index)
        counts.append(len(out))
        return model

    def counted_shelve(self, model, index=None, modify=True):
        known = index if index is not None else next(iter(out))
        shelve(self, model, index, modify)
        out.discard(known)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ModelLibrary, "borrow", counted_borrow)
        patched.setattr(ModelLibrary, "shelve", counted_shelve)
        yield counts


@dataclass(frozen=True)
class Run:
    """
    A run of a Step on the association, and what was seen of it.

    Parameters
    ----------
    kind : type
        What it returned.
    on_disk : bool
        Whether that keeps its exposures in files.
    models : list
        The exposures in it, where it does not.
    planes, levels : dict
        The pixel planes in it, and the levels of the sky.
    folder : Path
        The folder that it ran in, empty before.
    records : list
        What it logged.
    borrowed : list of int
        How many exposures were out of the library, at each that was borrowed.
    inputs : list of dict
        Fingerprints of all files beside the exposures, before and after.
    """

    kind: type
    on_disk: bool
    models: list
    planes: dict
    levels: dict
    folder: Path
    records: list
    borrowed: list
    inputs: list

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]

    def copy(self):
        """Put copies of the exposures into a library of their own."""
        return ModelLibrary([model.copy() for model in self.models])


def product_of(case, name):
    """Name the product of an exposure."""
    return f"{name.rpartition('_')[0]}_{case.step.class_alias}.fits"


def watch(case, given, folder, exposures, planes_of, levels_of, **parameters):
    folder.mkdir()
    beside = exposures.association.parent
    before = fingerprints(beside.iterdir())
    with contextlib.chdir(folder), Records() as records, borrowed() as counts:
        result = case.call(given, **parameters)
        most, kind, on_disk = list(counts), type(result), result.on_disk
        if parameters.get("save_results"):
            # A model takes the name of the file in which it is saved.
            known = {product_of(case, name): name for name in exposures.names}
            for model in result.map_function(lambda model, _: model):
                model.meta.filename = known[model.meta.filename]
        planes, levels = planes_of(result), levels_of(result)
        models = [] if on_disk else list(result.map_function(lambda model, _: model))
        # A library on disk has a folder of its own, here, for as long as it lives.
        del result
    after = fingerprints(beside.iterdir())
    return Run(kind, on_disk, models, planes, levels, folder, records, most, [before, after])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, planes_of, levels_of):
    """Run a Step on the association in memory, where it saves its products, and on disk, each once."""
    done = {}
    ways = {"in memory": {"save_results": True}, "on disk": {"in_memory": False}}

    def run(way, case, field):
        if (way, case.name) not in done:
            folder = tmp_path_factory.mktemp(case.name) / "run"
            # Once as a str, once as a Path.
            given = field.association if way == "on disk" else str(field.association)
            done[way, case.name] = watch(case, given, folder, field, planes_of, levels_of, **ways[way])
        return done[way, case.name]

    return run


@pytest.fixture
def plain(runs, case, exposures):
    """Give the run in memory, whose products were saved."""
    return runs("in memory", case, exposures)


@pytest.fixture
def on_disk(runs, case, exposures):
    return runs("on disk", case, exposures)


@pytest.fixture
def products(plain, case, exposures):
    """Name the files that were saved, in the order of the exposures."""
    return [plain.folder / product_of(case, name) for name in exposures.names]


# 1 Input


def as_dictionary(files, field, opened):
    """Members of other types, which need not be images, are not read."""
    asn = field.dictionary(files)
    asn["products"][0]["members"].append({"expname": "catalog.ecsv", "exptype": "sourcecat"})
    return asn


def as_file_names(files, field, opened):
    return files


def as_container(files, field, opened):
    return ModelContainer(opened(files))


def as_library(files, field, opened):
    return ModelLibrary(field.dictionary(files), on_disk=False)


def backwards(names):
    return names[::-1]


def rolled(names):
    return [*names[-2:], *names[:-2]]


@pytest.mark.parametrize(
    ("way", "shuffle", "kind"),
    [
        (as_dictionary, backwards, ModelLibrary),
        (as_file_names, rolled, ModelLibrary),
        (as_container, rolled, ModelContainer),
        # One on disk is given where work is spread.
        (as_library, backwards, ModelLibrary),
    ],
    ids=lambda value: value.__name__,
)
def test_every_kind_of_input_in_any_order_gives_the_same_numbers_in_its_own_kind_and_order(
    way, shuffle, kind, case, exposures, opened, planes_of, levels_of, plain, tmp_cwd
):
    names = shuffle(exposures.names)
    given = way(shuffle(exposures.files), exposures, opened)

    result = case.call(given)

    assert isinstance(result, kind)
    planes = planes_of(result)
    assert list(planes) == names
    assert_same(planes, {name: plain.planes[name] for name in names})
    assert levels_of(result) == plain.levels
    assert not list(tmp_cwd.iterdir())
    if isinstance(given, ModelLibrary):
        assert result is given, "a library is handed on and not copied"


def test_an_association_comes_back_as_a_library_in_its_order(plain, on_disk, exposures):
    for run in (plain, on_disk):
        assert run.kind is ModelLibrary
        assert list(run.planes) == exposures.names


def test_one_exposure_comes_back_as_one_exposure(case, exposures, opened):
    for given in (exposures.files[0], Path(exposures.files[0]), opened(exposures.files[:1])[0]):
        with case.call(given) as result:
            assert type(result) is datamodels.ImageModel
            assert result is not given
            assert result.meta.filename == exposures.names[0]


# 2 Output


def test_only_the_planes_it_corrects_change(case, exposures, loaded, planes_of, plain):
    before = planes_of(loaded(exposures.files))
    after = plain.planes

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


def test_input_models_stay_as_they_were(case, exposures, opened, planes_of, plain):
    models = opened(backwards(exposures.files))
    before = planes_of(models)
    described = [model.to_flat_dict(include_arrays=False) for model in models]

    result = case.call(models)

    assert isinstance(result, ModelContainer)
    after = planes_of(result)
    assert list(after) == backwards(exposures.names)
    assert_same(after, {name: plain.planes[name] for name in after})
    assert_same(planes_of(models), before)
    assert [model.to_flat_dict(include_arrays=False) for model in models] == described
    assert not {id(model) for model in models} & {id(model) for model in result}


def test_stock_steps_take_the_result(plain):
    cleaned = OutlierDetectionStep.call(plain.copy(), save_intermediate_results=False)
    mosaic = ResampleStep.call(cleaned)

    assert mosaic.meta.cal_step.outlier_detection == "COMPLETE"
    assert mosaic.meta.cal_step.resample == "COMPLETE"
    assert np.isfinite(mosaic.data).mean() > 0.5
    mosaic.close()


# 3 Files


def test_nothing_lands_in_the_working_directory_or_beside_the_exposures(on_disk):
    """In memory this is seen of every kind of input."""
    assert not list(on_disk.folder.iterdir())
    assert on_disk.inputs[0] == on_disk.inputs[1]


def test_products_carry_status_and_the_alias_as_their_one_suffix_and_inputs_are_not_overwritten(
    case, exposures, planes_of, plain, products, monkeypatch
):
    # As users have it: the suite reads faster.
    monkeypatch.setattr(asdf.get_config(), "validate_on_read", True)
    assert sorted(path.name for path in plain.folder.iterdir()) == sorted(
        [*(path.name for path in products), *case.beside]
    )
    reread = {}
    for name, path in zip(exposures.names, products, strict=True):
        with datamodels.open(path) as model:
            assert model.meta.filename == path.name
            assert getattr(model.meta.cal_step, case.step.class_alias) == "COMPLETE"
            model.meta.filename = name
            reread |= planes_of(model)
    assert_same(reread, plain.planes)
    assert plain.inputs[0] == plain.inputs[1]


# 4 Twice


def metadata(library):
    """Everything but the log, which stpipe keeps there too."""
    flat = [library.read_metadata(k) for k in range(len(library))]
    return [
        {key: str(value) for key, value in each.items() if not key.startswith("cal_logs.")} for each in flat
    ]


def test_a_second_run_changes_nothing_and_says_so(case, plain, planes_of, caplog):
    library = plain.copy()
    described = metadata(library)

    second = case.call(library)

    assert_same(planes_of(second), plain.planes)
    assert metadata(library) == described
    assert case.says_done in caplog.text


def test_a_second_run_on_saved_products_changes_nothing_and_says_so(
    case, exposures, plain, products, tmp_cwd, planes_of, caplog
):
    """Two of them, for none looks at the others."""
    files = list(map(str, products[:2]))
    first = fingerprints(files)
    # That this is in the files was seen above.
    before = {product_of(case, name): plain.planes[name] for name in exposures.names[:2]}

    again = case.call(exposures.dictionary(files), in_memory=False, save_results=True, output_dir="second")

    assert_same(planes_of(again), before)
    del again
    assert case.says_done in caplog.text
    assert [path.name for path in tmp_cwd.iterdir()] == ["second"]
    assert {path.name for path in (tmp_cwd / "second").iterdir()} == {*before, *case.beside}
    assert fingerprints(files) == first


# 5 Provenance


def test_history_is_in_the_file_and_names_the_version(case, products):
    for path in products:
        # As it is in the file: a model would add what it knows.
        with asdf_in_fits.open(path) as file:
            entries = [dict(entry) for entry in file.get_history_entries()]
        ours = [entry for entry in entries if case.name in entry["description"]]
        assert len(ours) == 1
        assert ours[0]["software"]["name"] == "miri_steps"
        assert ours[0]["software"]["version"] == miri_steps.__version__
        header = "".join(fits.getheader(path)["HISTORY"])
        assert case.name in header
        assert f"miri_steps {miri_steps.__version__}" in header
        for name, value in case.parameters.items():
            for history in (ours[0]["description"], header):
                assert f"{name}={value}" in history


# 6 Memory


def test_on_disk_gives_the_same_numbers_and_tells_its_progress(exposures, plain, on_disk):
    assert on_disk.on_disk
    for number, name in enumerate(exposures.names, start=1):
        place = f"{number}/{len(exposures.names)}"
        assert any(place in said and name in said for said in on_disk.messages)
    assert_same(on_disk.planes, plain.planes)


def test_in_memory_false_holds_one_exposure_at_a_time(on_disk):
    assert on_disk.borrowed
    assert max(on_disk.borrowed) == 1


# 7 What it refuses


def test_other_modes_are_refused_by_name(case, exposures, opened, tmp_cwd):
    """All of them are in the tests of what the Steps ask."""
    models = opened(exposures.files[:2])
    models[1].meta.exposure.type = "MIR_MRS"

    with pytest.raises(ValueError, match=f"{exposures.names[1]}.*MIR_IMAGE.*got MIR_MRS"):
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


def test_log_lines_are_under_stpipe(plain):
    """Only such loggers are heard inside the stock pipelines."""
    ours = [record for record in plain.records if "miri_steps" in record.name]
    assert ours
    assert all(record.name.startswith("stpipe.") for record in ours)
    assert any(record.levelno >= logging.INFO for record in ours)


# Work that is spread


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Run two workers of a Dask cluster, with their own scratch folders."""
    distributed = pytest.importorskip("distributed", reason="needs miri-steps[dask]")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as running:
        yield running


class Killer(logging.Handler):
    """Kill a worker of a cluster as soon as a Step says that it has looked at its first exposure."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster, self.killed = cluster, None

    def emit(self, record):
        if self.killed is None and record.getMessage().startswith("1/"):
            self.killed = next(iter(self.cluster.workers.values())).pid
            os.kill(self.killed, signal.SIGKILL)


def test_a_library_on_disk_in_any_order_gives_the_same_on_a_cluster(
    case, exposures, cluster, planes_of, levels_of, plain, tmp_cwd
):
    given = ModelLibrary(exposures.dictionary(rolled(exposures.files)), on_disk=True)
    # It has a folder of its own, here.
    before = set(tmp_cwd.iterdir())
    # One of those whose workers write scratch files is enough for the death of one.
    killer = Killer(cluster) if case.name == "SuperBackgroundStep" else logging.NullHandler()
    logging.getLogger("stpipe").addHandler(killer)
    try:
        spread = case.call(given, executor=cluster.scheduler_address)
    finally:
        logging.getLogger("stpipe").removeHandler(killer)

    assert getattr(killer, "killed", True)
    assert spread is given, "a library is handed on and not copied"
    planes = planes_of(spread)
    assert list(planes) == rolled(exposures.names)
    assert_same(planes, {name: plain.planes[name] for name in planes})
    assert levels_of(spread) == plain.levels
    assert set(tmp_cwd.iterdir()) == before
