"""What every test needs: a folder of its own, no display, no network."""

import os
from pathlib import Path

import pytest

# Before anything imports pyplot: the suite runs where there is no display.
os.environ["MPLBACKEND"] = "Agg"
# jwst asks CRDS for parameters on every Step it builds unless told not to.
os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"

REPOSITORY = Path(__file__).resolve().parents[1]


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
