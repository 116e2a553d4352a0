"""Fetch TRELLIS.2's models into one folder, checked, resumable, ready for TRELLIS2_MODEL_DIR.

    python builder/fetch_models.py models/ [--replace rembg=ORG/REPO] [--skip rembg]

One of the four repositories, DINOv3, is gated: accept its licence on its page, and pass a token of
your account in HF_TOKEN (as a build secret in an image). Of TRELLIS.2's checkpoints, those are
fetched that pipeline.json names, so no encoder. A fetch that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from builder.model_folder import (
    RECORD,
    Source,
    read_sources,
    rewrite_pipeline,
    structure_problems,
    write_record,
)

PIPELINE = "pipeline.json"

NOT_COMMERCIAL = ("briaai/RMBG-2.0", "briaai/RMBG-1.4")
"""Replacements that are known to be for non-commercial use only."""


def main() -> int:
    """Fetch, rewrite, record and verify; returns the exit code."""
    args = _parser().parse_args()
    sources = _chosen(read_sources(args.sources), args.replace, args.skip)
    if args.locked:
        sources = _locked(sources, args.locked)
    if args.dry_run:
        for source in sources:
            patterns = " ".join(source.files)
            print(f"{source.repo}@{source.revision} {patterns} -> {args.out / source.folder}")
        return 0
    commits = {}
    for number, source in enumerate(sources, 1):
        print(f"[{number}/{len(sources)}] {source.repo}@{source.revision}", flush=True)
        try:
            commits[source.name] = _fetch(source, args.out)
        except (HfHubHTTPError, OSError, ValueError) as err:
            sys.exit(_explain(source, err))
    rewrite_pipeline(args.out, {source.name for source in sources})
    write_record(args.out, commits, sources)
    # Each file has just been hashed for the record: hashing 17 GB again would find the same.
    wrong = list(structure_problems(args.out))
    print("\n".join(wrong) or f"{args.out} is complete; {args.out / RECORD} says what is in it")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the model folder to make")
    parser.add_argument(
        "--sources",
        type=Path,
        default=Path(__file__).with_name("models.json"),
        help="what to fetch",
    )
    parser.add_argument(
        "--locked", type=Path, metavar=RECORD, help="fetch the commits of an earlier fetch's record"
    )
    parser.add_argument(
        "--replace", action="append", default=[], metavar="NAME=ORG/REPO[@REVISION]"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="NAME")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be fetched")
    return parser


def _chosen(sources: list[Source], replaced: list[str], skipped: list[str]) -> list[Source]:
    names = {source.name for source in sources}
    swaps = dict(text.partition("=")[::2] for text in replaced)
    if unknown := (set(swaps) | set(skipped)) - names:
        sys.exit(f"there is no source {', '.join(sorted(unknown))}; there are {sorted(names)}")
    chosen = []
    for source in sources:
        if source.name in skipped:
            continue
        if repo := swaps.get(source.name):
            name, _, revision = repo.partition("@")
            source = replace(source, repo=name, revision=revision or "main", gated=None)
            if name in NOT_COMMERCIAL:
                print(
                    f"warning: {name} is for non-commercial use only, unless you have an "
                    "agreement with its makers (docs/licences.md)",
                    file=sys.stderr,
                )
        chosen.append(source)
    return chosen


def _locked(sources: list[Source], record: Path) -> list[Source]:
    commits = {s["repo"]: s["commit"] for s in json.loads(record.read_text())["sources"]}
    if absent := [s.repo for s in sources if s.repo not in commits]:
        sys.exit(f"{record} has no commit of {', '.join(absent)}")
    return [replace(source, revision=commits[source.repo]) for source in sources]


def _fetch(source: Source, out: Path) -> str:
    """Fetch one source at the commit that its revision stands for; returns the commit."""
    commit = HfApi().model_info(source.repo, revision=source.revision).sha
    if commit is None:
        raise ValueError("the hub names no commit")
    folder = out / source.folder
    download = partial(snapshot_download, source.repo, revision=commit, local_dir=folder)
    download(allow_patterns=source.files)
    if (folder / PIPELINE).is_file():
        download(allow_patterns=_named(folder / PIPELINE))
    return commit


def _named(pipeline: Path) -> list[str]:
    """Return patterns for the checkpoints that a pipeline names in its own repository."""
    models = json.loads(pipeline.read_text())["args"]["models"].values()
    return [f"{where}.*" for where in models if where.startswith("ckpts/")]


def _explain(source: Source, err: Exception) -> str:
    """Say what to do, not what was thrown; an address with a token never gets out."""
    if isinstance(err, GatedRepoError):
        lines = [
            f"{source.repo} is gated: accept its licence at https://huggingface.co/{source.repo},",
            "then pass a token of that account in HF_TOKEN.",
        ]
    elif isinstance(err, RevisionNotFoundError):
        lines = [f"{source.repo} has no revision {source.revision}"]
    elif isinstance(err, RepositoryNotFoundError):
        lines = [f"{source.repo} was not found, or HF_TOKEN may not see it"]
    else:
        lines = [f"{source.repo} could not be fetched ({type(err).__name__}); run this again"]
    if source.replacement:
        lines.append(f"Or use {source.replacement}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
