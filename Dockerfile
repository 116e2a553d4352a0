# syntax=docker/dockerfile:1.7
# The worker's image: extensions, then weights, then code, so that a change of code moves megabytes.
#   docker buildx bake            (docker-bake.hcl: full and slim)

ARG CUDA=13.0.2
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
COPY builder/requirements-gpu.txt builder/
RUN pip install --no-cache-dir 'setuptools>=77,<81' wheel==0.46.1 -r builder/requirements-gpu.txt
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0"
ARG MAX_JOBS=4
COPY builder/build_extensions.sh builder/
RUN builder/build_extensions.sh /wheels

# --- weights -------------------------------------------------------------------------------------
FROM python:3.12-slim-bookworm AS weights
WORKDIR /build
RUN pip install --no-cache-dir huggingface-hub==2.4.0
COPY builder/models.json builder/model_folder.py builder/fetch_models.py builder/
ARG FETCH_OPTIONS=""
# hadolint ignore=SC2086
RUN --mount=type=secret,id=HF_TOKEN \
    HF_TOKEN="$(cat /run/secrets/HF_TOKEN 2>/dev/null || true)" \
    python builder/fetch_models.py /models ${FETCH_OPTIONS} \
    && rm -rf /models/.cache /models/*/.cache

# --- the worker without weights ------------------------------------------------------------------
FROM nvidia/cuda:${CUDA}-base-ubuntu${UBUNTU} AS slim
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# gcc: Triton compiles a launcher for each kernel that is not in the cache yet.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
      ca-certificates gcc libc6-dev libgomp1 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
COPY pyproject.toml requirements.lock builder/requirements-gpu.txt builder/image_requirements.py builder/
# What the package itself needs, by pyproject.toml, at the lock's versions.
RUN pip install --no-cache-dir -r builder/requirements-gpu.txt \
    && python builder/image_requirements.py builder /tmp \
    && pip install --no-cache-dir -c /tmp/constraints.txt -r /tmp/requirements.txt
COPY --from=extensions /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl \
    && mv /wheels/trellis2 "$(python -c 'import site; print(site.getsitepackages()[0])')" \
    && rm -rf /wheels \
    && pip freeze --all > /app/bill-of-materials.txt
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

# --- the worker with weights: theirs are the lower layers, the code the top one --------------------
FROM slim AS full
COPY --from=weights /models/ /models/
ENV TRELLIS2_MODEL_DIR=/models
COPY handler.py test_input.json ./
COPY trellis_runtime/ trellis_runtime/
RUN python -m compileall -q --invalidation-mode unchecked-hash handler.py trellis_runtime
