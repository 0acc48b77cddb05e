"""What every test needs: a folder of its own, no display, no network."""

import gc
import os
from pathlib import Path

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
