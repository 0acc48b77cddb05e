"""Work spread over processes: how many, in order, and never too much at once."""

import math
import os
import subprocess

import numpy as np
import pytest

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
