"""Suites: many runs that belong together, compared: `gpo compare`."""
