"""Imported last of all by the server of forked processes: what it has imported is no child's to collect."""

import gc

gc.collect()
gc.freeze()
