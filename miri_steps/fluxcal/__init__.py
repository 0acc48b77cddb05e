"""Flux calibration of MIRI imaging and coronagraphy, from images of standard stars to reference files.

Each module is one part of it: `config` (filters, subarrays, stars), `photometry`, `encircled` (energy, and
aperture corrections), `band_fluxes` of models, `time_loss`, `factors` and `reference_files`.
"""
