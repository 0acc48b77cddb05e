"""What a reduction has finished: products, with what they were made from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miri_steps.reduction.jobs import Job

__all__ = ["Ledger"]

# Beginning of the names of folders that jobs write to.
_WORK = ".work_"
# Folder of each stage.
_FOLDERS = {"detector1": "stage1", "image2": "stage2", "image3": "stage3"}


class Ledger:
    """
    The output folder of a reduction, and what in it is finished.

    Jobs write to a folder of their own. Once they are done their files are moved to the folder of
    their stage, and what they were made from is written down last of all: whatever stops a run, a file
    that is not whole is never taken for a product.

    Parameters
    ----------
    folder : Path
        The output folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._notes = folder / ".reduction"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """
        Hold the folder for one reduction, and clear away what a killed one has left.

        Raises
        ------
        OSError
            If it cannot be written to.
        RuntimeError
            If another reduction is at work in it.
        """
        self._notes.mkdir(parents=True, exist_ok=True)
        with open(self._notes / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"another reduction is at work in {self.folder}: wait for its end"
                ) from None
            self._clear_all()
            try:
                yield
            finally:
                self._clear_all()

    def folder_of(self, stage: str) -> Path:
        """
        Say where the products of a stage go.

        Parameters
        ----------
        stage : str
            One of `STAGES`.

        Returns
        -------
        Path
            The folder.
        """
        return self.folder / _FOLDERS[stage]

    def product_of(self, job: Job) -> Path:
        """
        Say where the main product of a job goes.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        Path
            The file.
        """
        return self.folder_of(job.stage.name) / job.product

    def work_of(self, job: Job) -> Path:
        """
        Name the folder a job writes to.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        Path
            The folder, not yet made.
        """
        # As deep as the folder of the stage: an association names the same files from both. With a number,
        # because workers of a run that was killed may still be at work on the same job.
        return self.folder / f"{_WORK}{os.getpid()}_{job.key}"

    def log_of(self, job: Job) -> Path:
        """
        Name the log of a job.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        Path
            The file.
        """
        return self.folder / "logs" / f"{_FOLDERS[job.stage.name]}_{job.name}.log"

    def is_finished(self, job: Job) -> bool:
        """
        Tell whether the products of a job are there, whole, and made from what would be used now.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        bool
            True if there is nothing to do.

        Raises
        ------
        ValueError
            If a product was changed since it was made.
        """
        note = self._read(job)
        if note is None or not note["done"]:
            return False
        there = self._check_products(job, note)
        inputs, known = _by_name(job), note["inputs"]
        if not there or note["settings"] != job.settings() or set(known) != set(inputs):
            return False
        return all(_is_same(path, known[name]) for name, path in inputs.items())

    def publish(self, job: Job) -> list[Path]:
        """
        Move what a job has written to where it belongs.

        Parameters
        ----------
        job : Job
            A job that has ended well.

        Returns
        -------
        list of Path
            Its products.

        Raises
        ------
        FileExistsError
            If a file is in the way that this reduction has not made. Nothing is moved then.
        OSError
            If the disk is full or the folder cannot be written to.
        """
        work, folder = self.work_of(job), self.folder_of(job.stage.name)
        made = sorted(path for path in work.rglob("*") if path.is_file())
        targets = {path.relative_to(work).as_posix(): path for path in made}
        former = (self._read(job) or {"products": {}})["products"]
        for name in targets:
            target = folder / name
            if target.exists() and name not in former:
                raise FileExistsError(
                    f"{target} is in the way: this reduction has not made it and does not overwrite it"
                )
        note = {
            "done": False,
            "settings": job.settings(),
            "inputs": {name: _fingerprint(path) for name, path in _by_name(job).items()},
            "products": former | dict.fromkeys(targets),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._write(job, note)
        for name, path in targets.items():
            _to_disk(path)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, folder / name)
        for name in set(former) - set(targets):
            (folder / name).unlink(missing_ok=True)
        products = {name: _fingerprint(folder / name) for name in targets}
        self._write(job, note | {"done": True, "products": products})
        return [folder / name for name in targets]

    def clear(self, job: Job) -> None:
        """
        Remove the folder that a job has written to.

        Parameters
        ----------
        job : Job
            The job.
        """
        shutil.rmtree(self.work_of(job), ignore_errors=True)

    def _clear_all(self):
        for folder in self.folder.glob(f"{_WORK}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _check_products(self, job, note):
        """Tell whether all products are there; refuse one that is not as it was made."""
        folder = self.folder_of(job.stage.name)
        paths = {name: folder / name for name in note["products"]}
        for name, path in paths.items():
            if path.exists() and not _is_same(path, note["products"][name]):
                raise ValueError(
                    f"{path} was changed since it was made, and is not overwritten: move it away or delete it"
                )
        return all(path.exists() for path in paths.values())

    def _read(self, job):
        try:
            return json.loads((self._notes / f"{job.key}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _write(self, job, note):
        path = self._notes / f"{job.key}.json"
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(note, indent=1), encoding="utf-8")
        _to_disk(temporary)
        os.replace(temporary, path)


def _by_name(job):
    """Name the files that decide about a result: without their folder, which may move."""
    return {path.name: path for path in (*job.inputs, *job.named_files())}


def _fingerprint(path: Path) -> dict:
    status = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": status.st_size, "mtime": status.st_mtime_ns, "sha256": digest}


def _is_same(path, known):
    """Compare a file with its fingerprint, and read it only if its date has changed."""
    try:
        status = path.stat()
    except OSError:
        return False
    if known is None or status.st_size != known["size"]:
        return False
    return status.st_mtime_ns == known["mtime"] or _fingerprint(path)["sha256"] == known["sha256"]


def _to_disk(path):
    """Wait until a file is on the disk: a power cut must not leave its name without its content."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
