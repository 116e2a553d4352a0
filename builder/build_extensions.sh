#!/usr/bin/env bash
# Build upstream's CUDA extensions as wheels, without a GPU: builder/build_extensions.sh OUT
# Every commit is one that was measured (docs/benchmarks.md). About three minutes on 16 cores for one
# architecture; each further one adds to that.
set -euo pipefail
out=${1:?usage: build_extensions.sh OUT}
mkdir -p "$out"
out=$(cd "$out" && pwd)
: "${TORCH_CUDA_ARCH_LIST:=8.0;8.6;8.9;9.0;10.0;12.0}"
: "${PIP:=pip}"
export TORCH_CUDA_ARCH_LIST
export MAX_JOBS=${MAX_JOBS:-4}
export LDFLAGS="-s ${LDFLAGS:-}"

TRELLIS2_COMMIT=${TRELLIS2_COMMIT:-5565d240c4a494caaf9ece7a554542b76ffa36d3}
FLEXGEMM_COMMIT=${FLEXGEMM_COMMIT:-6dd94a859c26ee8246888502eada3dd8ad85532e}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

get() { # URL COMMIT FOLDER
  git clone --quiet --recurse-submodules "$1" "$work/$3"
  git -C "$work/$3" checkout --quiet "$2"
  git -C "$work/$3" submodule update --quiet --init --recursive
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
get https://github.com/JeffreyXiang/FlexGEMM.git "$FLEXGEMM_COMMIT" flexgemm
get https://github.com/microsoft/TRELLIS.2.git "$TRELLIS2_COMMIT" trellis2
wheel flexgemm
wheel trellis2/o-voxel
# trellis2 itself is plain Python without a setup: its package goes beside the wheels.
cp -r "$work/trellis2/trellis2" "$out/trellis2"
ls -l "$out"
