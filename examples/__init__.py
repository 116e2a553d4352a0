"""Clients to copy from; `tests/test_examples.py` runs each against a worker."""
