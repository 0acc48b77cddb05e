"""``miri-steps fluxcal``: the whole flux calibration, or one part of it."""

import argparse
import sys
import warnings
from pathlib import Path

__all__ = ["add"]


def add(commands: argparse._SubParsersAction) -> None:
    """
    Add ``fluxcal`` and its subcommands to those of ``miri-steps``.

    Parameters
    ----------
    commands : subparsers of argparse
        Where they are added.
    """
    calibration = commands.add_parser(
        "fluxcal", help="calibrate fluxes, from images of standard stars to the pipeline's reference files"
    )
    parts = calibration.add_subparsers(dest="part", required=True, metavar="PART")
    for add_part in (_add_all, _add_psfs, _add_apertures, _add_stars, _add_fluxes, _add_subarrays):
        add_part(parts)
    _add_factors(parts)


def _add_all(parts):
    parser = _add(parts, "all", _run, "all parts, one after the other", "new folder [DIR_fluxcal]", None)
    _images(parser)
    _models(parser)
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--apertures", type=Path, metavar="FILE", help="aperture correction reference file")
    one.add_argument("--psfs", type=Path, metavar="DIR", help="folder of model PSFs, named after filters")
    _bright(parser)
    _ee(parser)
    parser.add_argument(
        "--solve-subarrays",
        action="store_true",
        help="solve for the transmissions of subarrays, instead of taking those known",
    )
    _averages(parser)
    _author(parser)


def _add_psfs(parts):
    parser = _add(parts, "psfs", _psfs, "model PSFs of filters, by stpsf", "folder")
    parser.add_argument("filters", nargs="+", metavar="FILTER", help="name of a filter, as F770W")


def _add_apertures(parts):
    parser = _add(parts, "apertures", _apertures, "aperture corrections", "new reference file")
    _images(parser)
    parser.add_argument(
        "--psfs", type=Path, required=True, metavar="DIR", help="folder of model PSFs, named after filters"
    )
    _bright(parser)
    _author(parser)


def _add_stars(parts):
    parser = _add(parts, "photometry", _photometry, "light of all stars", "table (.ecsv or .tex)")
    _images(parser)
    parser.add_argument(
        "--apertures", type=Path, required=True, metavar="FILE", help="aperture correction reference file"
    )
    _ee(parser)


def _add_fluxes(parts):
    parser = _add(parts, "fluxes", _fluxes, "fluxes of models in filters", "table (.ecsv or .tex)")
    _models(parser)


def _add_subarrays(parts):
    parser = _add(parts, "subarrays", _subarrays, "transmissions of subarrays", "table (.ecsv or .tex)")
    parser.add_argument("photometry", type=Path, help="table of the light of stars")


def _add_factors(parts):
    parser = _add(parts, "factors", _factors, "calibration factors, from tables of the two", "new folder")
    parser.add_argument("photometry", type=Path, help="table of the light of stars")
    parser.add_argument("fluxes", type=Path, help="table of the fluxes of models")
    parser.add_argument(
        "--transmissions", type=Path, metavar="FILE", help="table of transmissions of subarrays [those known]"
    )
    _averages(parser)
    _author(parser)


def _add(parts, name, run, what, output, *default):
    parser = parts.add_parser(name, help=what)
    settings = {"type": Path, "metavar": "PATH", "help": output, "required": not default}
    parser.add_argument("-o", "--output", **settings)
    parser.set_defaults(run=_in_one_line(run))
    return parser


def _images(parser):
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="folder of _i2d files of standard stars, or of _cal files"
    )


def _models(parser):
    for name, what in (
        ("spectra", "model spectra, named after stars as CALSPEC does: p330e_mod_008.fits"),
        ("throughputs", "throughput curves, named after filters: F770W.ecsv"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=f"folder of {what}")


def _bright(parser):
    parser.add_argument(
        "--bright",
        action="append",
        default=[],
        metavar="STAR",
        help="star whose growth curves are joined to the model PSFs; may be repeated",
    )


def _ee(parser):
    parser.add_argument(
        "--ee", type=float, default=0.7, metavar="PART", help="part of the light in an aperture [0.7]"
    )


def _averages(parser):
    parser.add_argument(
        "--losses", type=Path, metavar="FILE", help="table of losses that are known, as losses.ecsv"
    )
    parser.add_argument(
        "--repeatability",
        type=float,
        default=0.003,
        metavar="PART",
        help="relative error of a rate beside its noise [0.003]",
    )
    parser.add_argument(
        "--legacy", action="store_true", help="fit, clip and average as it was published, to compare"
    )


def _author(parser):
    parser.add_argument("--author", default="unknown", help="name for the reference files")


def _in_one_line(run):
    """Say in one line what was written, or what could not be done."""

    def run_part(args):
        from miri_steps.fluxcal_chain import parts  # imports jwst, which takes seconds

        with warnings.catch_warnings():
            warnings.showwarning = _show
            try:
                written = run(parts, args)
            except (ImportError, OSError, ValueError) as error:
                raise SystemExit(f"miri-steps fluxcal {args.part}: {error}") from error
        print(f"{written} written")

    return run_part


def _show(message, *_):
    """Print a warning without the line of code that it comes from."""
    print(message, file=sys.stderr)


def _run(parts, args):
    whole = args.directory.resolve()
    output = args.output or whole.with_name(f"{whole.name}_fluxcal")
    names = "spectra", "throughputs", "apertures", "psfs", "bright", "ee", "solve_subarrays", "author"
    given = _chosen(args, *names) | _chosen_averages(args)
    try:
        _list(parts.run(args.directory, output, **given))
    except (OSError, ValueError) as error:
        # The longest part is done: the rest can be done by itself.
        if (output / "photometry.ecsv").exists() and not isinstance(error, FileExistsError):
            raise ValueError(f"{error}; tables for 'miri-steps fluxcal factors' are in {output}") from error
        raise
    return output


def _psfs(_, args):
    from miri_steps.fluxcal import model_psfs

    model_psfs.compute(args.filters, args.output)
    return args.output


def _apertures(parts, args):
    images = parts.inputs.find_images(args.directory)
    return parts.write_apertures(images, args.psfs, args.output, **_chosen(args, "bright", "author"))


def _photometry(parts, args):
    images = parts.inputs.find_images(args.directory)
    return parts.write_photometry(images, args.apertures, args.output, ee=args.ee)


def _fluxes(parts, args):
    return parts.write_fluxes(args.spectra, args.throughputs, args.output)


def _subarrays(parts, args):
    return parts.write_subarrays(args.photometry, args.output)


def _factors(parts, args):
    given = _chosen(args, "transmissions", "author") | _chosen_averages(args)
    _list(parts.write_factors(args.photometry, args.fluxes, args.output, **given))
    return args.output


def _chosen_averages(args):
    return _chosen(args, "losses", "repeatability", "legacy")


def _chosen(args, *names):
    return {name: getattr(args, name) for name in names}


def _list(calibrations):
    for band, one in calibrations.items():
        print(
            f"{band:7s} {one.factor:.5g} +- {one.error:.2g} (MJy/sr)/(DN/s), {one.average.stars} stars, "
            f"loss {100 * one.loss.loss:.2f} %/yr"
        )
