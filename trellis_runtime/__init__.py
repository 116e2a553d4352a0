"""A RunPod serverless worker for TRELLIS.2."""

__version__ = "0.1.0"
