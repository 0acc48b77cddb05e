"""Flux calibration of MIRI imaging and coronagraphy, from images of standard stars to reference files.

Each module is one part of it: `config` (filters, subarrays, stars); `photometry`; `encircled` (energy, and
aperture corrections), with `neighbours`, `symmetry` and `model_psfs`; `band_fluxes` of models;
`observations`, the rows of photometry on one scale; `time_loss`, of stars that `monitoring` finds;
`subarrays`; `factors` and their `calibration`; `tables` and `reference_files`.
"""
