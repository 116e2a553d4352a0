"""From a decoded surface and its voxels to a textured asset, in torch and Warp, on any device."""
