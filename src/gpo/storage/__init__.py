"""The run directory: rows in chunks, whole files, and where everything is."""
