"""Check a model folder against its record: every file there, whole, unchanged, and referenced.

python builder/verify_models.py models/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder.model_folder import structure_problems
from trellis_runtime.engines.model_record import RECORD, record_problems


def main() -> int:
    """Print what is wrong; returns 1 when anything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help=f"a folder with {RECORD}")
    parser.add_argument("--quiet", action="store_true", help="name only what is wrong")
    args = parser.parse_args()
    tell = (lambda _: None) if args.quiet else (lambda name: print(f"  {name}", flush=True))
    wrong = [*record_problems(args.folder, tell), *structure_problems(args.folder)]
    print("\n".join(wrong) or f"{args.folder} is complete")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
