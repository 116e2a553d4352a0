"""Backends, chosen by variables that are read once, at import."""

import os

CONV = os.environ.get("SPARSE_CONV_BACKEND", "unset")
ATTN = os.environ.get("SPARSE_ATTN_BACKEND", "unset")
