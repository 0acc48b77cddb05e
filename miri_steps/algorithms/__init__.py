"""Arrays in, arrays out: no data models, no files, no logging, no plots."""
