"""How to send jobs to the worker; each file runs as it stands, and the tests run it."""
