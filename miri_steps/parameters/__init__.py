"""Ready-made parameter files for the stock pipelines."""

from importlib.resources import files
from pathlib import Path

__all__ = ["copy", "describe", "file_name", "input_of", "names", "read"]

_PREFIX = "miri_"
_SUFFIX = ".asdf"


def names() -> list[str]:
    """
    List the parameter files that come with the package.

    Returns
    -------
    list of str
        Short names, sorted: ``"image3"`` stands for ``miri_image3.asdf``.

    Examples
    --------
    >>> from miri_steps import parameters
    >>> "image3" in parameters.names()
    True
    """
    packaged = (entry.name for entry in files(__name__).iterdir())
    return sorted(
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for name in packaged if name.endswith(_SUFFIX)
    )


def file_name(name: str) -> str:
    """
    Say what a parameter file is called on disk.

    Parameters
    ----------
    name : str
        One of `names`, or already the name of the file.

    Returns
    -------
    str
        For instance ``"miri_image3.asdf"``.

    Raises
    ------
    ValueError
        If the package has no such file.
    """
    stem = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    if stem not in names():
        raise ValueError(f"no parameter file named {name!r}; there are: {', '.join(names())}")
    return f"{_PREFIX}{stem}{_SUFFIX}"


def read(name: str) -> str:
    """
    Read the text of a parameter file.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    str
        The whole file, comments included.
    """
    return files(__name__).joinpath(file_name(name)).read_text(encoding="utf-8")


def describe(name: str) -> str:
    """
    Say in one line what a parameter file is for.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    str
        The first comment of the file. The ``#ASDF`` lines above it have no space after the ``#``.
    """
    return next(line[2:] for line in read(name).splitlines() if line.startswith("# "))


def input_of(name: str) -> str:
    """
    Say what the pipeline of a parameter file works on.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    str
        The last word of the ``strun`` line in the comments of the file, for instance ``"asn.json"``.
    """
    return next(line for line in read(name).splitlines() if line.startswith("#     strun ")).split()[-1]


def copy(name: str, target: str | Path | None = None) -> Path:
    """
    Copy a parameter file to where ``strun`` can be pointed at it.

    Parameters
    ----------
    name : str
        One of `names`.
    target : str or Path, optional
        The file to write; by default its own name, in the current directory.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileExistsError
        If `target` exists: a parameter file somebody has edited is never overwritten.
    """
    text = read(name)
    target = Path(file_name(name) if target is None else target)
    with open(target, "x", encoding="utf-8") as file:
        file.write(text)
    return target
