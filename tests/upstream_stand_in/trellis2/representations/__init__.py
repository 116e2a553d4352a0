"""Meshes, which upstream's own module makes only where its extensions are installed."""


def __getattr__(name):
    if name in ("Mesh", "MeshWithVoxel"):
        raise ImportError("No module named 'cumesh'", name="cumesh")
    raise AttributeError(name)
