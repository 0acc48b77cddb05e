"""What a reduction has finished: products, with what they were made from."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miri_steps import whole_files
from miri_steps.reduction.jobs import Job, attempts, fingerprint
from miri_steps.steps.base import check_file

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
            except OSError:
                # Not every disk of a cluster knows locks: better without one than not at all.
                pass
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

    def has_begun(self, job: Job) -> bool:
        """
        Tell whether somebody has begun a job.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        bool
            True if there is a folder that it writes to.
        """
        work = self.work_of(job)
        return work.exists() or bool(attempts(work))

    def adopt(self, job: Job, work: Path) -> None:
        """
        Take the folder of one attempt at a job for that of the job.

        Parameters
        ----------
        job : Job
            The job.
        work : Path
            Folder of the attempt that has ended.

        Raises
        ------
        OSError
            If it is not there, as on a disk that is not shared.
        """
        work.rename(self.work_of(job))

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
        Tell whether the products of a job are there, and made from what would be used now.

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
            If a product would have to be made again, but was changed since it was made; or if one is not
            whole any more.
        FileExistsError
            If a file is in its place that this reduction has not made.
        """
        note, folder = self._read(job), self.folder_of(job.stage.name)
        if not note:
            self._check_free(job, {})
            return False
        if not note["done"]:
            return False
        edited = self.edited(job)
        for path in edited:
            if path.suffix == ".fits":
                check_file(path)
        files, known = job.files(), note["inputs"]
        same = (
            all((folder / name).exists() for name in note["products"])
            and note["settings"] == job.settings()
            and set(known) == set(files)
            and all(_is_same(path, known[name]) for name, path in files.items())
        )
        if edited and not same:
            raise ValueError(
                f"{edited[0]} was changed since it was made, and is not overwritten: move it away or delete "
                "it to have it made again, with all that is made with it"
            )
        return same

    def edited(self, job: Job) -> list[Path]:
        """
        List the products of a job that somebody has changed since.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        list of Path
            Files that are there, but not as they were made.
        """
        note, folder = self._read(job), self.folder_of(job.stage.name)
        if not note or not note["done"]:
            return []
        paths = {folder / name: known for name, known in note["products"].items()}
        return [path for path, known in paths.items() if path.exists() and not _is_same(path, known)]

    def former_inputs(self, job: Job) -> set[str]:
        """
        Name what the product that an earlier run has made was made from.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        set of str
            Names of inputs, and of files that parameters named; empty where there is no such product.
        """
        note = self._read(job)
        return set(note["inputs"]) if note and note["done"] and self.product_of(job).exists() else set()

    def digest(self) -> str:
        """
        Give a word that changes with anything that is finished.

        Returns
        -------
        str
            A hash of all notes.
        """
        notes = sorted(self._notes.glob("*.json"))
        return hashlib.sha256(b"".join(note.name.encode() + note.read_bytes() for note in notes)).hexdigest()

    def publish(self, job: Job, inputs: dict[str, dict] | None = None) -> list[Path]:
        """
        Move what a job has written to where it belongs.

        Parameters
        ----------
        job : Job
            A job that has ended well.
        inputs : dict, optional
            What it was made from, as it was when the job began: it may have changed meanwhile.

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
        self._check_free(job, former, targets)
        note = {
            "done": False,
            "settings": job.settings(),
            "inputs": job.fingerprints() if inputs is None else inputs,
            "products": former | dict.fromkeys(targets),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._write(job, note)
        for name, path in targets.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _move(path, folder / name)
        for name in set(former) - set(targets):
            (folder / name).unlink(missing_ok=True)
        products = {name: fingerprint(folder / name) for name in targets}
        self._write(job, note | {"done": True, "products": products})
        return [folder / name for name in targets]

    def keep(self, job: Job) -> Path:
        """
        Keep what a job has written where it could not be moved to its place.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        Path
            The folder, in the place of one that was kept before.
        """
        kept = self.folder / "kept" / job.key
        kept.parent.mkdir(exist_ok=True)
        if kept.exists():
            shutil.rmtree(kept)
        self.work_of(job).rename(kept)
        return kept

    def _check_free(self, job, former, names=None):
        """Refuse to overwrite files that are not of this job."""
        folder = self.folder_of(job.stage.name)
        for name in [job.product] if names is None else names:
            if (folder / name).exists() and name not in former:
                raise FileExistsError(
                    f"{folder / name} is in the way: this reduction has not made it and does not overwrite it"
                )

    def clear(self, job: Job) -> None:
        """
        Remove the folders that a job has written to.

        Parameters
        ----------
        job : Job
            The job.
        """
        work = self.work_of(job)
        for folder in (work, *attempts(work)):
            shutil.rmtree(folder, ignore_errors=True)

    def _clear_all(self):
        for folder in self.folder.glob(f"{_WORK}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self, job):
        try:
            note = json.loads((self._notes / f"{job.key}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return note if {"done", "settings", "inputs", "products"} <= set(note) else None

    def _write(self, job, note):
        text = json.dumps(note, indent=1)
        path = self._notes / f"{job.key}.json"
        whole_files.replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _is_same(path, known):
    """Compare a file with its fingerprint, and read it only if its date has changed."""
    try:
        status = path.stat()
    except OSError:
        return False
    if known is None or status.st_size != known["size"]:
        return False
    return status.st_mtime_ns == known["mtime"] or fingerprint(path)["sha256"] == known["sha256"]


def _move(path, target):
    """Move a file, whole or not at all, also to another disk."""
    whole_files.to_disk(path)
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        whole_files.replace(target, lambda temporary: shutil.copy2(path, temporary))
