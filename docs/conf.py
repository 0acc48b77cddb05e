"""Sphinx configuration: builds with ``sphinx-build -W -b html docs docs/_build``, offline."""

import sys
from pathlib import Path

import miri_steps

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "miri_steps"
author = "miri_steps developers"
copyright = "2026, miri_steps developers"
version = release = miri_steps.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "step_parameters",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
nitpicky = False

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc sections say the types
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "sphinx_rtd_theme"
html_title = f"miri_steps {release}"
html_show_sphinx = False
