"""Numbers and figures for people to judge by. matplotlib is imported by the modules that draw, not here."""
