"""What every test needs: a folder of its own, no display, no network."""

import copy
import functools
import gc
import os
from pathlib import Path

import asdf.schema
import pytest

# Before anything imports pyplot: the suite runs where there is no display.
os.environ["MPLBACKEND"] = "Agg"
# jwst asks CRDS for parameters on every Step it builds unless told not to.
os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"
# Before anything imports numpy: the cores are taken by the workers of pytest.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Put the quick files last: handed out by file, they fill what is left of the time of one worker."""
    items.sort(key=lambda item: item.path.parent.name == "algorithms")


@pytest.fixture(scope="session", autouse=True)
def schemas_shared():
    """
    Let asdf parse each schema once, and hand it out without a copy: it does so dozens of times per file.

    What is validated, and against what, stays the same; at the end the schemas must be what they were.
    """
    load = getattr(asdf.schema, "_load_schema_cached", None)
    make_loader = getattr(asdf.schema, "_make_schema_loader", None)
    if load is None or make_loader is None:
        # Another asdf, with other insides: the tests are slower, and that is all.
        yield
        return
    shared = {}

    def share(url, resolve_references=False):
        key = url, resolve_references
        if key not in shared:
            found = load(url, resolve_references)
            shared[key] = found, copy.deepcopy(found)
        return shared[key][0]

    with pytest.MonkeyPatch.context() as patched:
        loader = functools.cache(make_loader())
        patched.setattr(asdf.schema, "_make_schema_loader", lambda: loader)
        patched.setattr(asdf.schema, "load_schema", share)
        yield
    for (url, _), (schema, before) in shared.items():
        assert schema == before, f"the tests have changed the schema {url}"


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Spare the collections, of which stpipe does one before every run, all that was imported before."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def tmp_cwd(tmp_path, monkeypatch):
    """Run each test in an empty folder, so that whatever it drops is seen and goes away."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def shared_data():
    """Return the folder of real data that lies beside the repository, where there is one."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which do not come with the repository")
    return folder
