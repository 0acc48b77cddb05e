"""The ``miri-steps`` command."""

import argparse
import sys
from pathlib import Path

from miri_steps import __version__, parameters
from miri_steps.fluxcal_chain import commands as fluxcal_commands

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """
    Run the ``miri-steps`` command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments after the command's name; by default those of the shell.

    Raises
    ------
    SystemExit
        With the reason as its message (exit code 1) if a command cannot do what it was asked.
    """
    args = _parser().parse_args(argv)
    args.run(args)


def _parser():
    parser = argparse.ArgumentParser(prog="miri-steps", description="Repair MIRI imaging, step by step.")
    parser.add_argument("--version", action="version", version=f"miri_steps {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="simulate a field, process it with and without miri_steps, compare with the truth",
    )
    demo.add_argument(
        "directory",
        nargs="?",
        default="miri_demo",
        type=Path,
        metavar="DIR",
        help="folder for the files it makes [miri_demo]",
    )
    demo.set_defaults(run=_demo)

    _add_reduce(commands)
    _add_report(commands)

    fluxcal_commands.add(commands)

    files = commands.add_parser("parameters", help="list or copy ready-made parameter files for strun")
    files.add_argument("name", nargs="?", metavar="NAME", help="the file to copy; without it, all are listed")
    files.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write [its own name]")
    files.set_defaults(run=_parameters)
    return parser


def _add_reduce(commands):
    chain = commands.add_parser(
        "reduce", help="bring a folder of exposures through stages 1 to 3, and report what was done"
    )
    chain.add_argument(
        "directory", type=Path, metavar="DIR", help="folder of _uncal, _rate or _cal files of one field"
    )
    chain.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for the results [DIR_reduced]"
    )
    chain.add_argument(
        *("-p", "--parameters"),
        action="append",
        default=[],
        metavar="FILE",
        help="parameter file of a stage, or the name of one that comes with miri_steps; may be repeated",
    )
    chain.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="STEP.PARAMETER=VALUE",
        help="change a parameter of a stock step or of one of ours; may be repeated",
    )
    chain.add_argument(
        "--from",
        dest="start",
        metavar="KIND",
        help="start from uncal, rate or cal files [the rawest there is]",
    )
    chain.add_argument(
        "--cores",
        default="1",
        metavar="N",
        help="processes: a number, quarter, half or all [1]; a cluster has its own number",
    )
    chain.add_argument(
        "--executor",
        metavar="ADDRESS_OR_FILE",
        help="scheduler of a Dask cluster that does the work: its address, or the file that it has written",
    )
    chain.add_argument("--no-report", action="store_true", help="do not write report.html")
    chain.set_defaults(run=_reduce)


def _add_report(commands):
    page = commands.add_parser(
        "report", help="show in one HTML page what was done to a mosaic, and whether it worked"
    )
    page.add_argument(
        "source", type=Path, metavar="PRODUCT_OR_DIR", help="an _i2d.fits file, or a folder of them"
    )
    page.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write [beside the mosaic]")
    page.set_defaults(run=_report)


def _reduce(args):
    from miri_steps.reduction import reduce  # imports jwst, which takes seconds

    try:
        table = reduce(
            args.directory,
            args.output,
            parameters=args.parameters,
            changes=dict(_parse_change(text) for text in args.changes),
            start=args.start,
            maximum_cores=args.cores,
            executor=args.executor,
            save_report=not args.no_report,
        )
    except (ModuleNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"miri-steps reduce: {error}") from error
    except KeyboardInterrupt:
        print("miri-steps reduce: stopped; the same command goes on from here", file=sys.stderr)
        if args.executor:
            print("What workers are at they end, and it is thrown away.", file=sys.stderr)
        raise SystemExit(130) from None
    if "failed" in table["status"]:
        raise SystemExit(1)


def _parse_change(text):
    """Read STEP.PARAMETER=VALUE as a line of a parameter file, where commas part the items of a list."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set must be STEP.PARAMETER=VALUE, got {text!r}")
    parts = [part.strip() for part in value.split(",")]
    return key.strip(), parts[0] if len(parts) == 1 else [part for part in parts if part]


def _report(args):
    from miri_steps import report  # imports astropy and matplotlib

    try:
        print(f"{report.write(args.source, args.output)} written")
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"miri-steps report: {error}") from error


def _demo(args):
    from miri_steps import demo  # imports jwst, which takes seconds

    try:
        demo.run(args.directory)
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"miri-steps demo: {error}") from error
    except KeyboardInterrupt:
        print(f"miri-steps demo: stopped; what was made so far is in {args.directory}", file=sys.stderr)
        raise SystemExit(130) from None


def _parameters(args):
    if args.name is None:
        _list_parameters(args.output)
        return
    try:
        written = parameters.copy(args.name, args.output)
    except FileExistsError as error:
        raise _refused(
            f"{error.filename} exists and is not overwritten; name another file with -o"
        ) from error
    except (OSError, ValueError) as error:
        raise _refused(error) from error
    print(f"{written} written. Run it with: strun {written} {parameters.input_of(args.name)}")


def _list_parameters(output):
    if output is not None:
        raise _refused(f"-o {output} needs the NAME of the file to copy")
    for name in parameters.names():
        print(f"{name:18s} {parameters.describe(name)}")


def _refused(reason):
    return SystemExit(f"miri-steps parameters: {reason}")
