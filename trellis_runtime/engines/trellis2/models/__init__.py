"""Upstream's networks computed faster or in less memory, on plain tensors."""
