"""Files of other formats than GLB: a placed asset in, a file's bytes out, the same each time."""

from trellis_runtime.assets.formats.write import (
    are_installed,
    require_compression,
    require_packages,
    write_file,
)

__all__ = ["are_installed", "require_compression", "require_packages", "write_file"]
