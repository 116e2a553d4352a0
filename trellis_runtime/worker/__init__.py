"""The job boundary: admission, start-up, one job's way through the engine, the answer."""
