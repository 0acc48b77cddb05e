"""Imported last by the server from which processes are forked: what each of them would do for itself."""

import gc

import asdf

# Looked for once, in all installed packages, and kept.
_ = asdf.get_config().extensions
# Pages that nobody touches stay shared, and the collections of stpipe pass over all that is imported.
gc.collect()
gc.freeze()
