"""Imports its exporter, which needs extensions that are not here."""

raise ImportError("No module named 'cumesh'", name="cumesh")
