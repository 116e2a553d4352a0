"""Pictures, meshes and GLB files: values in, values out."""
