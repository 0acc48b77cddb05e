"""Jobs in processes of their own: failures, deaths, and the end of it all."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from stdatamodels.jwst import datamodels

from miri_steps import simulate
from miri_steps.reduction import running
from miri_steps.reduction.jobs import Job
from miri_steps.reduction.ledger import Ledger
from miri_steps.reduction.settings import Stage

SKIPPED = {
    name: {"skip": True} for name in ("bkg_subtract", "assign_wcs", "flat_field", "photom", "resample")
}
DEADLY = """
import os, signal
from pathlib import Path
from jwst.stpipe import Step
class Die(Step):
    def process(self, model):
        os.kill(os.getpid(), signal.SIGKILL)
class Fail(Step):
    def process(self, model):
        raise RuntimeError(f"nothing fits {model.meta.filename}")
class End(Step):
    def process(self, model):
        import logging
        logging.getLogger("CRDS").error("no photom reference")
        raise SystemExit(-1)
class OnceDie(Step):
    def process(self, model):
        if not Path("tried").exists():
            Path("tried").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return model
"""


@pytest.fixture
def job_of(tmp_cwd, monkeypatch):
    """Make jobs of stage 2 that run no step but a hook."""
    for name, value in simulate.offline_crds(tmp_cwd).items():
        monkeypatch.setenv(name, value)
    (tmp_cwd / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_cwd)

    def make(name, hook=None):
        rate = tmp_cwd / f"{name}_rate.fits"
        model = datamodels.ImageModel(np.zeros((8, 8), np.float32))
        model.meta.exposure.type, model.meta.instrument.name = "MIR_IMAGE", "MIRI"
        model.save(rate)
        steps = SKIPPED | {"photom": {"skip": True, "pre_hooks": [hook] if hook else []}}
        return Job(name, "F770W", Stage("image2", {}, steps), rate, (rate,))

    return make


def test_failures_and_deaths_stop_nobody_else(job_of, tmp_cwd):
    hooks = {"a": None, "b": "Fail", "c": "Die", "d": "End", "e": "OnceDie"}
    jobs = [job_of(name, hook and f"deadly.{hook}") for name, hook in hooks.items()]
    ledger = Ledger(tmp_cwd / "out")

    with ledger.opened():
        outcomes = {job.name: outcome for job, outcome in running.run(jobs, ledger, 1, print)}
        made = [job.name for job in jobs if (ledger.work_of(job) / job.product).exists()]

    assert made == ["a", "e"]
    assert outcomes.pop("b").problem.startswith("RuntimeError: nothing fits ")
    assert {name: outcome.problem for name, outcome in outcomes.items()} == {
        "a": "",
        "c": "its process was killed: was there enough memory? Fewer cores need less",
        "d": "the pipeline ended the program: no photom reference",
        # Its process died once: it is tried once more, alone.
        "e": "",
    }
    assert "RuntimeError: nothing fits" in ledger.log_of(jobs[1]).read_text()


def test_a_folder_that_cannot_be_written_to_is_a_failure(job_of, tmp_cwd):
    (tmp_cwd / "out").mkdir()
    (tmp_cwd / "out" / "logs").write_text("in the way")
    ledger = Ledger(tmp_cwd / "out")

    with ledger.opened():
        ((_, outcome),) = running.run([job_of("a")], ledger, 1, print)

    assert "logs" in outcome.problem


def test_workers_end_with_their_parent(tmp_cwd):
    code = (
        "import os, time\n"
        "from miri_steps import workers\n"
        "if __name__ == '__main__':\n"
        "    with workers.open_pool(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 60).result()\n"
    )
    (tmp_cwd / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, "parent.py"], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_alive(worker):
        time.sleep(0.05)
    assert not is_alive(worker)


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A dead child of nobody may wait a moment for its burial.
    with open(f"/proc/{process}/stat") as file:
        return file.read().split()[2] != "Z"
