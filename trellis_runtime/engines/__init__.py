"""What computes: one folder for each engine."""
