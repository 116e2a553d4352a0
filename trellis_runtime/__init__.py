"""A RunPod serverless worker for TRELLIS.2."""

__version__ = "0.2.0"
