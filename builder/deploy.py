"""Create a serverless endpoint for this worker on RunPod, by the platform's REST API v2.

    RUNPOD_API_KEY=... python builder/deploy.py registry/image:tag --name trellis2
    python builder/deploy.py registry/image:tag --dry-run        # only print the request

Variables for the worker come from --env NAME=VALUE; for a credential give a secret of your RunPod
account, --env BUCKET_SECRET_ACCESS_KEY='{{ RUNPOD_SECRET_bucket }}': it never passes through here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import requests

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder.toolkits import DEFAULT, TOOLKITS
from trellis_runtime.settings import VARIABLES

API = "https://api.runpod.io"
POOLS = ("ADA_24", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO")
_TIMEOUT_S = 60


def endpoint_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the request body: POST /v2/serverless."""
    body: dict[str, Any] = {
        "name": args.name,
        "type": "QUEUE",
        "image": args.image,
        "disk": args.disk,
        "env": {"TRELLIS2_WARM_UP": "512"} | dict(args.env),
        "gpu": {
            "pools": args.pools,
            "count": 1,
            "minCudaVersion": TOOLKITS[args.toolkit].floor,
        },
        "workers": {"min": args.workers_min, "max": args.workers_max, "idleTimeout": args.idle},
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
        "timeout": args.timeout * 1000,
        "flashboot": "FLASHBOOT",  # the API's default is OFF
    }
    if args.volume:
        body["networkVolumes"] = [args.volume]
    return body


def main() -> int:
    """Create the endpoint, or print what would be sent; returns the exit code."""
    args = _parser().parse_args()
    if unknown := [name for name, _ in args.env if name not in VARIABLES | _PLATFORM]:
        sys.exit(f"{', '.join(unknown)} is no variable of this worker (docs/settings.md)")
    body = endpoint_of(args)
    if args.dry_run:
        print(json.dumps(body, indent=2))
        return 0
    key = os.environ.get("RUNPOD_API_KEY")
    if not key:
        sys.exit("RUNPOD_API_KEY is not set")
    try:
        answer = requests.post(
            f"{args.api}/v2/serverless",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_S,
            allow_redirects=False,
        )
    except requests.RequestException as err:
        sys.exit(f"{args.api} cannot be reached ({type(err).__name__})")
    if answer.status_code != 201:
        sys.exit(f"the API answered {answer.status_code}: {answer.text[:500]}")
    made = answer.json()
    print(f"endpoint {made['id']}: https://api.runpod.ai/v2/{made['id']}/run")
    return 0


_PLATFORM = {"RUNPOD_LOG_LEVEL": (), "RUNPOD_INIT_TIMEOUT": ()}


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="the image that `docker buildx bake` made and you pushed")
    parser.add_argument("--name", default="trellis2")
    parser.add_argument("--pools", nargs="+", default=list(POOLS), help="GPU pools, best first")
    parser.add_argument(
        "--toolkit", choices=TOOLKITS, default=DEFAULT.name, help="what the image was built with"
    )
    parser.add_argument("--disk", type=int, default=60, help="container disk, GB")
    parser.add_argument("--volume", help="id of a network volume (for the image without weights)")
    parser.add_argument("--workers-min", type=int, default=0)
    parser.add_argument("--workers-max", type=int, default=3)
    parser.add_argument("--idle", type=int, default=10, help="seconds before a worker stops")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for a job")
    parser.add_argument("--env", type=_pair, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--api", default=API, help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="only print the request")
    return parser


if __name__ == "__main__":
    sys.exit(main())
