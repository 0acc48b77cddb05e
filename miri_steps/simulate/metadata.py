"""What a real ``_cal`` file says about itself, for a simulated one."""

from __future__ import annotations

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
_DONE = (
    "dq_init saturation firstframe lastframe reset linearity rscd dark_sub jump ramp_fit "
    "assign_wcs flat_field photom"
).split()


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
    meta = {
        "telescope": "JWST",
        "origin": "miri_steps.simulate",
        "filename": f"{pointing.name}_cal.fits",
        "time_sys": "UTC",
        "time_unit": "s",
        "bunit_data": "MJy/sr",
        "bunit_err": "MJy/sr",
        "instrument": _instrument(filter_name),
        "exposure": _exposure(pointing, exptype),
        "subarray": _subarray(subarray),
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
        "photometry": _photometry(filter_name),
        "cal_step": dict.fromkeys(_DONE, "COMPLETE"),
        "calibration_software_version": "1.20.2",
        "calibration_software_revision": "RELEASE",
    }
    model.update({"meta": meta})
    _attach_wcs(model, pointing, filter_name, subarray)


def _attach_wcs(model: datamodels.ImageModel, pointing: Pointing, filter_name: str, subarray: str) -> None:
    v2, v3 = wcs.reference_point(subarray)
    model.meta.wcs = wcs.build(pointing, filter_name, subarray)
    model.meta.wcsinfo.instance.update(
        wcs.fits_wcs(model.meta.wcs),
        ra_ref=pointing.ra,
        dec_ref=pointing.dec,
        roll_ref=pointing.pa_v3,
        v2_ref=v2,
        v3_ref=v3,
        v3yangle=V3_IDEAL_ANGLE,
        vparity=V_IDEAL_PARITY,
        velosys=0.0,
        s_region=wcs.s_region(model.meta.wcs),
    )


def _instrument(filter_name: str) -> dict:
    return {
        "name": "MIRI",
        "detector": "MIRIMAGE",
        "filter": filter_name,
        "ccc_state": "OPEN",
        "lamp_mode": "NONE",
        "lamp_state": "OFF",
    }


def _exposure(pointing: Pointing, exptype: str) -> dict:
    times = {}
    for name, seconds in (("start", 0.0), ("mid", EXPOSURE_TIME / 2), ("end", EXPOSURE_TIME)):
        utc = pointing.start_time + seconds / _DAY
        times |= {f"{name}_time": utc, f"{name}_time_mjd": utc}
        times[f"{name}_time_tdb"] = utc + _TDB_AHEAD / _DAY
    lengths = dict.fromkeys(
        ("integration_time", "exposure_time", "effective_exposure_time", "elapsed_exposure_time"),
        EXPOSURE_TIME,
    )
    return {
        "type": exptype,
        "count": pointing.n_dithers,
        "readpatt": "FASTR1",
        "nints": 1,
        "ngroups": N_GROUPS,
        "nframes": 1,
        "groupgap": 0,
        "nsamples": 1,
        "sample_time": 10.0,
        "frame_time": GROUP_TIME,
        "group_time": GROUP_TIME,
        "duration": EXPOSURE_TIME,
        "measurement_time": EXPOSURE_TIME,
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


def _subarray(name: str) -> dict:
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
