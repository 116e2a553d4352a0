"""Bytes in from addresses, and results out to stores."""
