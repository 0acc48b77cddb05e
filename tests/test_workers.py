"""Work spread over processes: how many, in order, and never too much at once."""

import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from miri_steps import workers


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("1", 1),
        ("7", 7),
        ("8", 8),
        ("99", 8),
        ("none", 1),
        ("one", 1),
        ("quarter", 2),
        ("half", 4),
        ("all", 8),
        (" Half ", 4),
        (3, 3),
    ],
)
def test_number_of_processes(eight_cores, asked, expected):
    assert workers.count(asked) == expected


@pytest.mark.parametrize("asked", ["none", "one", "quarter", "half", "all", "1", "4"])
def test_a_single_core_is_one_process(monkeypatch, asked):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert workers.count(asked) == 1


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert workers.count("all") == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.count("all") == 1


@pytest.mark.parametrize("asked", ["0", "-2", "2.5", "most", "", "None of it"])
def test_wrong_words_are_named(eight_cores, asked):
    message = "maximum_cores must be a number of at least 1 or one of none, one, quarter, half, all, got "
    with pytest.raises(ValueError, match=message + repr(asked)):
        workers.count(asked)


def test_one_core_stays_in_this_process():
    with workers.open_map(1) as run:
        assert list(run(lambda _: os.getpid(), range(3))) == [os.getpid()] * 3


def test_results_come_in_the_order_of_tasks():
    # The first task ends last.
    commands = ["sleep 0.5; echo 0", *(f"echo {k}" for k in range(1, 9))]
    with workers.open_map(2) as run:
        assert list(run(subprocess.getoutput, commands)) == [str(k) for k in range(9)]


def test_tasks_run_in_other_processes():
    with workers.open_map(2) as run:
        parents = set(run(subprocess.getoutput, ["echo $PPID"] * 4))
    assert str(os.getpid()) not in parents


def test_tasks_are_taken_only_as_they_are_needed():
    cores, total = 2, 20
    taken = []

    def tasks():
        for k in range(total):
            taken.append(k)
            yield float(k)

    with workers.open_map(cores) as run:
        results = run(math.sqrt, tasks())
        assert taken == []
        for done, result in enumerate(results):
            assert result == math.sqrt(done)
            # This result is out; at most 2 per process are under way behind it.
            assert len(taken) <= done + 1 + 2 * cores
            assert len(taken) >= min(total, done + 2 * cores)
    assert taken == list(range(total))


def test_no_tasks_give_no_results():
    with workers.open_map(2) as run:
        assert list(run(math.sqrt, [])) == []


@pytest.mark.parametrize("cores", [1, 2])
def test_a_failure_in_a_worker_is_raised(cores):
    found = []
    with workers.open_map(cores) as run, pytest.raises(ValueError, match="math domain error|nonnegative"):
        for result in run(math.sqrt, [4.0, 9.0, -1.0, 16.0]):
            found.append(result)
    assert found == [2.0, 3.0]


def test_the_map_can_be_used_again():
    with workers.open_map(2) as run:
        assert list(run(math.sqrt, [4.0])) == [2.0]
        arrays = list(run(np.linalg.norm, [np.arange(3.0) * k for k in range(5)]))
    np.testing.assert_allclose(arrays, np.sqrt(5) * np.arange(5))


# ---- what goes wrong, here, in processes and on a cluster

# Processes import what they run by its name; a test module they do not find.
CHORES = """
import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Chore:
    name: str
    marker: str = ""
    always: bool = False


def do(chore):
    if chore.name == "bad.fits":
        raise ValueError("it must be good, got bad")
    if chore.marker and (chore.always or not os.path.exists(chore.marker)):
        open(chore.marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return chore.name, os.getpid(), os.environ.get("OMP_NUM_THREADS")
"""


@pytest.fixture(scope="module")
def chores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chores")
    (folder / "miri_test_chores.py").write_text(CHORES)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("miri_test_chores")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def cluster(chores, tmp_path_factory):
    distributed = pytest.importorskip("distributed", reason="needs miri-steps[dask]")
    folder = tmp_path_factory.mktemp("dask")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(folder)
    ) as running:
        yield running


@pytest.fixture(params=["here", "processes", "cluster"])
def opened(request):
    if request.param == "cluster":
        return workers.open_map(1, request.getfixturevalue("cluster").scheduler_address)
    return workers.open_map(1 if request.param == "here" else 2)


def test_an_error_names_the_task(chores, opened):
    tasks = [chores.Chore(name) for name in ("good.fits", "bad.fits", "other.fits")]
    with opened as run, pytest.raises(ValueError, match="it must be good") as caught:
        list(run(chores.do, tasks))
    assert caught.value.__notes__ == ["This was bad.fits."]


@pytest.mark.parametrize("opened", ["processes", "cluster"], indirect=True)
def test_work_whose_process_was_killed_is_done_again(chores, opened, tmp_path):
    names = [f"{k}.fits" for k in range(9)]
    tasks = [chores.Chore(name, str(tmp_path / "died") if name == "3.fits" else "") for name in names]
    with opened as run:
        found = list(run(chores.do, tasks))
        again = list(run(chores.do, tasks))
    assert [name for name, _, _ in found] == [name for name, _, _ in again] == names
    assert (tmp_path / "died").exists()
    assert os.getpid() not in [process for _, process, _ in found]


def test_work_that_kills_its_process_every_time_is_named(chores, tmp_path):
    tasks = [chores.Chore(f"{k}.fits") for k in range(4)]
    tasks[1] = chores.Chore("greedy.fits", str(tmp_path / "died"), always=True)
    found = []
    with workers.open_map(2) as run:
        with pytest.raises(RuntimeError, match="killed twice .* was there enough memory") as caught:
            found += run(chores.do, tasks)
        assert caught.value.__notes__ == ["This was greedy.fits."]
        # The next work gets processes that live.
        assert [name for name, _, _ in run(chores.do, tasks[2:])] == ["2.fits", "3.fits"]


def test_processes_that_cannot_start_are_told_from_those_that_are_killed(chores, tmp_path):
    tasks = [chores.Chore("first.fits", str(tmp_path / "died"), always=True)]
    with workers.open_map(2) as run, pytest.raises(RuntimeError, match="before any work .*__main__"):
        list(run(chores.do, tasks))


@pytest.mark.parametrize("cores", [1, 2])
def test_a_batch_system_that_ends_the_process_leaves_time_to_tidy_up(chores, tmp_path, cores):
    scratch = tmp_path / "scratch"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(scratch), str(cores), str(Path(chores.__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "working\n"
        assert scratch.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not scratch.exists()


# It works until it is stopped.
SCRIPT = """
import contextlib, itertools, shutil, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import miri_test_chores as chores
from miri_steps import workers

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir()
    with contextlib.ExitStack() as opened:
        opened.callback(shutil.rmtree, folder)
        run = opened.enter_context(workers.open_map(int(sys.argv[2])))
        for number, _ in enumerate(run(chores.do, (chores.Chore("0.fits") for _ in itertools.count()))):
            if number == 0:
                print("working", flush=True)
"""


def test_each_process_has_one_thread_for_numbers(chores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with workers.open_map(2) as run:
        assert {threads for _, _, threads in run(chores.do, [chores.Chore("0.fits")] * 4)} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("cores", [1, 2])
def test_this_process_has_one_thread_for_numbers_meanwhile(cores):
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2):
        with workers.open_map(cores):
            assert {library["num_threads"] for library in threadpool_info()} == {1}
        assert {library["num_threads"] for library in threadpool_info()} == {2}


# ---- which cluster


def test_the_file_of_a_scheduler_stands_for_its_address(chores, cluster, tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": cluster.scheduler_address}))
    for name in (file, file.with_suffix("")):
        with workers.open_map(1, str(name)) as run:
            assert [name for name, _, _ in run(chores.do, [chores.Chore("0.fits")])] == ["0.fits"]


def test_a_cluster_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "_PATIENCE", 0.5)
    pytest.importorskip("distributed", reason="needs miri-steps[dask]")
    for name in (str(tmp_path / "nowhere.json"), "localhost:8786x", "."):
        with pytest.raises(FileNotFoundError, match=r"tcp://host:port.*no file "):
            workers.open_map(1, name).__enter__()
    (tmp_path / "asn.json").write_text('{"products": []}')
    (tmp_path / "half.json").write_text('{"address": "tcp://')
    for name in ("asn", "half.json"):
        with pytest.raises(ValueError, match="a Dask scheduler has written, with its address, got"):
            workers.open_map(1, str(tmp_path / name)).__enter__()
    with socket.socket() as taken, pytest.raises(OSError, match="nothing answers at tcp://127"):
        taken.bind(("127.0.0.1", 0))
        workers.open_map(1, f"tcp://127.0.0.1:{taken.getsockname()[1]}").__enter__()


def test_workers_with_other_versions_are_refused(chores, cluster, monkeypatch):
    here = dict(workers._versions())
    monkeypatch.setattr(workers, "_versions", lambda: here | {"jwst": "1.0"})

    with workers.open_map(1, cluster.scheduler_address) as run:
        with pytest.raises(
            RuntimeError, match=f"same versions, but .* has jwst {here['jwst']} instead of 1.0"
        ):
            list(run(abs, [-1]))


def test_workers_with_threads_are_refused(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs miri-steps[dask]")
    settings = {"processes": False, "dashboard_address": "127.0.0.1:0", "local_directory": str(tmp_path)}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, **settings) as running:
        with pytest.raises(ValueError, match=r"must have 1 thread each \(--nthreads 1\), but .* has 2"):
            workers.open_map(1, running.scheduler_address).__enter__()


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install miri-steps\[dask\]"):
        workers.open_map(1, "tcp://127.0.0.1:8786").__enter__()
