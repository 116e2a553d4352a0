"""What `make check` and CI measure besides the linters."""
