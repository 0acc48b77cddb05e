"""The ``miri-steps`` command."""

import argparse
import sys
from pathlib import Path

from miri_steps import __version__, parameters

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

    files = commands.add_parser("parameters", help="list or copy ready-made parameter files for strun")
    files.add_argument("name", nargs="?", metavar="NAME", help="the file to copy; without it, all are listed")
    files.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write [its own name]")
    files.set_defaults(run=_parameters)
    return parser


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
