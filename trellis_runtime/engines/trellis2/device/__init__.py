"""The card: its memory, what is resident on it, and its compiled kernels."""
