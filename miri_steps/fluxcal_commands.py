"""``miri-steps fluxcal``: the whole flux calibration, or one part of it."""

import argparse
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

    whole = _add(parts, "all", _run, "all parts, one after the other", "new folder [DIR_fluxcal]")
    _add_images(whole)
    _add_models(whole)
    one = whole.add_mutually_exclusive_group(required=True)
    one.add_argument("--apertures", type=Path, metavar="FILE", help="aperture correction reference file")
    _add_psfs(one, required=False)
    _add_bright(whole)
    _add_author(whole)

    apertures = _add(parts, "apertures", _apertures, "aperture corrections", "new reference file")
    _add_images(apertures)
    _add_psfs(apertures, required=True)
    _add_bright(apertures)
    _add_author(apertures)

    stars = _add(parts, "photometry", _photometry, "light of all stars", "table (.ecsv or .tex)")
    _add_images(stars)
    stars.add_argument(
        "--apertures", type=Path, required=True, metavar="FILE", help="aperture correction reference file"
    )

    fluxes = _add(parts, "fluxes", _fluxes, "fluxes of models in filters", "table (.ecsv or .tex)")
    _add_models(fluxes)

    factors = _add(parts, "factors", _factors, "calibration factors, from tables of the two", "new folder")
    factors.add_argument("photometry", type=Path, help="table of the light of stars")
    factors.add_argument("fluxes", type=Path, help="table of the fluxes of models")
    factors.add_argument(
        "--legacy", action="store_true", help="fit the loss of sensitivity as it was published, to compare"
    )
    _add_author(factors)


def _add(parts, name, run, what, output):
    parser = parts.add_parser(name, help=what)
    parser.add_argument(*("-o", "--output"), type=Path, required=name != "all", metavar="PATH", help=output)
    parser.set_defaults(run=_told(run))
    return parser


def _add_images(parser):
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="folder of _i2d files of standard stars, or of _cal files"
    )


def _add_models(parser):
    for name, what in (
        ("spectra", "model spectra, named after stars as CALSPEC does: p330e_mod_008.fits"),
        ("throughputs", "throughput curves, named after filters: F770W.ecsv"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=f"folder of {what}")


def _add_psfs(parser, *, required):
    parser.add_argument(
        "--psfs",
        type=Path,
        metavar="DIR",
        help="folder of model PSFs, named after filters",
        **({"required": True} if required else {}),
    )


def _add_bright(parser):
    parser.add_argument(
        "--bright",
        action="append",
        default=[],
        metavar="STAR",
        help="star whose growth curves are joined to the model PSFs; may be repeated",
    )


def _add_author(parser):
    parser.add_argument("--author", default="unknown", help="name for the reference files")


def _told(run):
    """Say in one line what a part cannot do."""

    def tell(args):
        from miri_steps import fluxcal_chain  # imports jwst, which takes seconds

        try:
            written = run(fluxcal_chain, args)
        except (OSError, ValueError) as error:
            raise SystemExit(f"miri-steps fluxcal {args.part}: {error}") from error
        print(f"{written} written")

    return tell


def _run(chain, args):
    output = args.output or args.directory.resolve().with_name(f"{args.directory.resolve().name}_fluxcal")
    models = {name: getattr(args, name) for name in ("spectra", "throughputs", "apertures", "psfs")}
    _list(chain.run(args.directory, output, bright=args.bright, author=args.author, **models))
    return output


def _apertures(chain, args):
    return chain.write_apertures(
        chain.images_of(args.directory), args.psfs, args.output, bright=args.bright, author=args.author
    )


def _photometry(chain, args):
    return chain.write_photometry(chain.images_of(args.directory), args.apertures, args.output)


def _fluxes(chain, args):
    return chain.write_fluxes(args.spectra, args.throughputs, args.output)


def _factors(chain, args):
    _list(
        chain.write_factors(args.photometry, args.fluxes, args.output, author=args.author, legacy=args.legacy)
    )
    return args.output


def _list(calibrations):
    for band, one in calibrations.items():
        print(
            f"{band:7s} {one.factor:.5g} +- {one.error:.2g} (MJy/sr)/(DN/s), {one.average.stars:.1f} stars, "
            f"loss {100 * one.loss.loss:.2f} %/yr"
        )
