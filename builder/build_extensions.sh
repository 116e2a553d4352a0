#!/usr/bin/env bash
# Build upstream's CUDA extensions as wheels, without a GPU: builder/build_extensions.sh OUT
# Every commit is one that was measured (docs/benchmarks.md), and is fetched by its hash, without
# submodules: the one there is, o-voxel's Eigen, is Debian's libeigen3-dev here (the functions that
# use it make grids out of meshes, which this worker never does). OUT gets the wheels, the package
# trellis2, and sources/: where each source came from, and its licence.
# About three minutes on 16 cores for one architecture; each further one adds to that.
set -euo pipefail
out=${1:?usage: build_extensions.sh OUT}
mkdir -p "$out"
out=$(cd "$out" && pwd)
: "${TORCH_CUDA_ARCH_LIST:=8.0;8.6;8.9;9.0;10.0;12.0}"
: "${PIP:=pip}"
export TORCH_CUDA_ARCH_LIST
export MAX_JOBS=${MAX_JOBS:-4}
export LDFLAGS="-s ${LDFLAGS:-}"
export CPATH=${EIGEN_DIR:-/usr/include/eigen3}${CPATH:+:$CPATH}
host=${SOURCES_HOST:-https://github.com}

TRELLIS2_COMMIT=5565d240c4a494caaf9ece7a554542b76ffa36d3
FLEXGEMM_COMMIT=6dd94a859c26ee8246888502eada3dd8ad85532e

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

get() { # REPOSITORY COMMIT FOLDER [PART...]: only those folders, and the files beside them
  git init --quiet "$work/$3"
  git -C "$work/$3" remote add origin "$host/$1"
  if [ $# -gt 3 ]; then
    git -C "$work/$3" sparse-checkout set "${@:4}"
  fi
  git -C "$work/$3" fetch --quiet --depth 1 --filter=blob:none origin "$2"
  git -C "$work/$3" checkout --quiet --detach "$2"
  mkdir -p "$out/sources/$3"
  cp "$work/$3/LICENSE" "$out/sources/$3/"
  printf '{"name": "%s", "repository": "https://github.com/%s", "commit": "%s"}\n' \
    "$3" "$1" "$2" >"$out/sources/$3/source.json"
}

wheel() { # FOLDER
  echo "building $1 for $TORCH_CUDA_ARCH_LIST"
  "$PIP" wheel --quiet --no-build-isolation --no-deps --wheel-dir "$out" "$work/$1"
}

if [ "${DRY_RUN:-0}" = 1 ]; then
  echo "would build FlexGEMM@$FLEXGEMM_COMMIT" \
    "o_voxel and trellis2@$TRELLIS2_COMMIT for $TORCH_CUDA_ARCH_LIST into $out"
  exit 0
fi
get JeffreyXiang/FlexGEMM "$FLEXGEMM_COMMIT" flexgemm
get microsoft/TRELLIS.2 "$TRELLIS2_COMMIT" trellis2 trellis2 o-voxel
if [ "${FETCH_ONLY:-0}" = 1 ]; then
  exit 0
fi
wheel flexgemm
wheel trellis2/o-voxel
# trellis2 itself is plain Python without a setup: its package goes beside the wheels.
cp -r "$work/trellis2/trellis2" "$out/trellis2"
ls -l "$out"
