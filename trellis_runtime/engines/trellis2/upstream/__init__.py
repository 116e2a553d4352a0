"""The only place that knows upstream's code: microsoft/TRELLIS.2, at one pinned commit."""
