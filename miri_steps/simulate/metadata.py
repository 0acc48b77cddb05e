"""What a real ``_cal`` file says about itself, for a simulated one."""

from __future__ import annotations

from typing import NamedTuple

from stdatamodels.jwst import datamodels

from miri_steps import detector
from miri_steps.simulate import sphere, wcs
from miri_steps.simulate.pointing import V3_IDEAL_ANGLE, V_IDEAL_PARITY, Pointing

#: Length of an exposure: one FASTR1 integration of 40 groups.
N_GROUPS, GROUP_TIME = 40, 2.77504
EXPOSURE_TIME = N_GROUPS * GROUP_TIME  # [s]

#: Calibration factor PHOTMJSR, of the size of the real ones [MJy/sr per DN/s].
CONVERSION = 0.3

_DAY = 86400.0
# Barycentric dynamical time is ahead of UTC [s]; MIRI's headers give both.
_TDB_AHEAD = 69.184
_DONE_BY_DETECTOR1 = (
    "dq_init saturation firstframe lastframe reset linearity rscd dark_sub jump ramp_fit"
).split()
_DONE = [*_DONE_BY_DETECTOR1, "assign_wcs", "flat_field", "photom"]


class Readout(NamedTuple):
    """How the detector is read: integrations of groups, one frame each, ``group_time`` [s] apart."""

    nints: int = 1
    ngroups: int = N_GROUPS
    group_time: float = GROUP_TIME

    @property
    def exposure_time(self) -> float:
        """Time that light is collected [s]."""
        return self.nints * self.ngroups * self.group_time


def describe(
    model: datamodels.ImageModel,
    pointing: Pointing,
    *,
    filter_name: str,
    subarray: str,
    exptype: str,
    target: tuple[float, float],
) -> None:
    """Fill in the metadata of an exposure, its gWCS included.

    Parameters
    ----------
    model : ImageModel
        Changed in place.
    pointing : Pointing
        The nominal pointing: what the file believes.
    filter_name, subarray, exptype : str
        Values of FILTER, SUBARRAY and EXP_TYPE.
    target : tuple of float
        Target position ra, dec [deg].
    """
    meta = _origin(pointing, filter_name, subarray, target) | {
        "filename": f"{pointing.name}_cal.fits",
        "bunit_data": "MJy/sr",
        "bunit_err": "MJy/sr",
        "exposure": _exposure(pointing, exptype, Readout()),
        "photometry": _photometry(filter_name),
        "cal_step": dict.fromkeys(_DONE, "COMPLETE"),
    }
    model.update({"meta": meta})
    gwcs = wcs.build(pointing, filter_name, subarray)
    model.meta.wcs = gwcs
    model.meta.wcsinfo.instance.update(wcs.fits_wcs(gwcs), **_aim(pointing, subarray, gwcs))


def describe_counts(
    model: datamodels.JwstDataModel,
    pointing: Pointing,
    *,
    suffix: str,
    readout: Readout,
    filter_name: str,
    subarray: str,
    exptype: str,
    target: tuple[float, float],
) -> None:
    """Fill in the metadata of an exposure before its second stage: where it looks, but no gWCS and no MJy.

    Parameters
    ----------
    model : JwstDataModel
        Changed in place.
    pointing : Pointing
        The nominal pointing: what the file believes.
    suffix : str
        End of the file name: "uncal", "ramp", "rate" or "rateints". The last two are in DN/s and have their
        first stage behind them.
    readout : Readout
        Integrations and groups.
    filter_name, subarray, exptype : str
        Values of FILTER, SUBARRAY and EXP_TYPE.
    target : tuple of float
        Target position ra, dec [deg].
    """
    fitted = suffix.startswith("rate")
    meta = _origin(pointing, filter_name, subarray, target) | {
        "filename": f"{pointing.name}_{suffix}.fits",
        "exposure": _exposure(pointing, exptype, readout),
        "cal_step": dict.fromkeys(_DONE_BY_DETECTOR1 if fitted else (), "COMPLETE"),
    }
    if fitted:
        meta |= {"bunit_data": "DN/s", "bunit_err": "DN/s"}
    model.update({"meta": meta})
    gwcs = wcs.build(pointing, filter_name, subarray)
    model.meta.wcsinfo.instance.update(_aim(pointing, subarray, gwcs))


def _origin(pointing: Pointing, filter_name: str, subarray: str, target: tuple[float, float]) -> dict:
    """Say what every product of an exposure says."""
    return {
        "telescope": "JWST",
        "origin": "miri_steps.simulate",
        "time_sys": "UTC",
        "time_unit": "s",
        "instrument": _instrument(filter_name),
        "subarray": readout_window(subarray),
        "observation": _observation(pointing),
        "program": {"title": "Simulated field", "pi_name": "Simulated", "category": "CAL"},
        "visit": _visit(pointing),
        "target": _target(*target),
        "aperture": _aperture(pointing, subarray),
        "dither": {
            "position_number": pointing.dither,
            "total_points": pointing.n_dithers,
            "primary_type": "CYCLING",
        },
        "guidestar": {"gs_id": pointing.gs_id, "gs_order": 1, "gs_pcs_mode": "FINEGUIDE"},
        "guide_star_catalog_version": "GSC32",
        "velocity_aberration": _velocity_aberration(pointing),
        "pointing": _pointing(pointing, subarray),
        "coordinates": {"reference_frame": "ICRS"},
        "calibration_software_version": "1.20.2",
        "calibration_software_revision": "RELEASE",
    }


def _aim(pointing: Pointing, subarray: str, gwcs: object) -> dict:
    """Give the reference point on the sky and in the telescope: what assign_wcs builds the gWCS from."""
    v2, v3 = wcs.reference_point(subarray)
    return {
        "ra_ref": pointing.ra,
        "dec_ref": pointing.dec,
        "roll_ref": pointing.pa_v3,
        "v2_ref": v2,
        "v3_ref": v3,
        "v3yangle": V3_IDEAL_ANGLE,
        "vparity": V_IDEAL_PARITY,
        "velosys": 0.0,
        "s_region": wcs.s_region(gwcs),
    }


def _instrument(filter_name: str) -> dict:
    return {
        "name": "MIRI",
        "detector": "MIRIMAGE",
        "filter": filter_name,
        "ccc_state": "OPEN",
        "lamp_mode": "NONE",
        "lamp_state": "OFF",
    }


def _exposure(pointing: Pointing, exptype: str, readout: Readout) -> dict:
    times = {}
    length = readout.exposure_time
    for name, seconds in (("start", 0.0), ("mid", length / 2), ("end", length)):
        utc = pointing.start_time + seconds / _DAY
        times |= {f"{name}_time": utc, f"{name}_time_mjd": utc}
        times[f"{name}_time_tdb"] = utc + _TDB_AHEAD / _DAY
    lengths = dict.fromkeys(("exposure_time", "effective_exposure_time", "elapsed_exposure_time"), length)
    return {
        "type": exptype,
        "count": pointing.n_dithers,
        "readpatt": "FASTR1",
        "nints": readout.nints,
        "ngroups": readout.ngroups,
        "nframes": 1,
        "groupgap": 0,
        "nsamples": 1,
        "sample_time": 10.0,
        "frame_time": readout.group_time,
        "group_time": readout.group_time,
        "integration_time": length / readout.nints,
        "duration": length,
        "measurement_time": length,
        "frame_divisor": 1,
        "noutputs": 4,
        "nresets_between_ints": 1,
        "nresets_at_start": 0,
        "zero_frame": False,
        "data_problem": False,
        "psf_reference": False,
        "prime_parallel": "PRIME",
        **times,
        **lengths,
    }


def readout_window(name: str) -> dict:
    """Describe a readout window as ``meta.subarray`` does."""
    window = detector.SUBARRAYS[name]
    return {"name": name, "fastaxis": 1, "slowaxis": 2, **window._asdict()}


def _observation(pointing: Pointing) -> dict:
    from astropy.time import Time

    activity = f"{pointing.visit_group}{pointing.sequence}{pointing.activity}"
    start = Time(pointing.start_time, format="mjd", scale="utc")
    end = Time(pointing.start_time + EXPOSURE_TIME / _DAY, format="mjd", scale="utc")
    date, clock = start.isot.split("T")
    return {
        "date": date,
        "time": clock,
        "date_beg": start.isot,
        "date_end": end.isot,
        "obs_id": f"V{pointing.visit_id}P00000000{activity}",
        "visit_id": pointing.visit_id,
        "program_number": pointing.program,
        "observation_number": pointing.observation,
        "visit_number": pointing.visit,
        "visit_group": pointing.visit_group,
        "sequence_id": pointing.sequence,
        "activity_id": pointing.activity,
        "exposure_number": str(pointing.exposure),
        "observation_label": "simulated",
        "template": "MIRI Imaging",
        "bkgdtarg": False,
    }


def _visit(pointing: Pointing) -> dict:
    return {
        "type": "PRIME_TARGETED_FIXED",
        "status": "SUCCESSFUL",
        "total_exposures": pointing.n_dithers,
        "internal_target": False,
        "tsovisit": False,
        "engdb_pointing_quality": "CALCULATED_TRACK_TR_202111",
    }


def _target(ra: float, dec: float) -> dict:
    return {
        "ra": ra,
        "dec": dec,
        "proposer_ra": ra,
        "proposer_dec": dec,
        "proposer_name": "SIMULATED",
        "catalog_name": "SIMULATED",
        "type": "FIXED",
    }


def _aperture(pointing: Pointing, subarray: str) -> dict:
    name = f"MIRIM_{subarray}"
    angle = (pointing.pa_v3 + V3_IDEAL_ANGLE) % 360.0
    return {"name": name, "pps_name": name, "position_angle": angle}


def _velocity_aberration(pointing: Pointing) -> dict:
    return {
        "scale_factor": pointing.va_scale,
        "va_ra_ref": pointing.ra,
        "va_dec_ref": pointing.dec,
    }


def _pointing(pointing: Pointing, subarray: str) -> dict:
    ra, dec, roll = sphere.decompose(wcs.attitude(pointing, subarray), 0.0, 0.0)
    return {"ra_v1": ra, "dec_v1": dec, "pa_v3": roll}


def _photometry(filter_name: str) -> dict:
    area = wcs.nominal_pixel_area(filter_name)
    return {
        "conversion_megajanskys": CONVERSION,
        # 1 MJy/sr = 23.5044 uJy/arcsec^2
        "conversion_microjanskys": CONVERSION * 1e12 * sphere.ARCSEC**2,
        "pixelarea_arcsecsq": area,
        "pixelarea_steradians": area * sphere.ARCSEC**2,
    }
