# The image of stepdial; docs/containers.md says how to build and run it.
#
#   docker build -t stepdial:0.1.0 .                                     serves on a CPU
#   docker build -t stepdial:0.1.0-cuda --build-arg DEVICE=cuda .        serves on an NVIDIA GPU
#   docker build -t stepdial:0.1.0-training --target training .          trains and measures
#   docker build --target sbom --output sbom .                           lists what the image is made of
#
# DEVICE=cpu takes PyTorch's CPU build: from the build context `wheels`, a folder with the wheel, or from the package index
# TORCH_INDEX. With neither it takes PyPI's build, which is the one for CUDA and gigabytes larger.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG DEVICE=cpu

# empty, unless --build-context wheels=FOLDER says otherwise
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 10001 stepdial \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin stepdial \
    && install -d -o 10001 -g 10001 /keys


# ---- What is installed: each stage fills one folder, which becomes one layer. pip's cache stays on the builder. ----

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

FROM build AS torch-cuda
RUN --mount=type=bind,source=deploy/image,target=/lock --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --no-deps --require-hashes --target /opt/torch -r /lock/torch.txt

FROM build AS torch-cpu
ARG TORCH_INDEX=
# the version is pinned in torch.txt
# hadolint ignore=DL3013
RUN --mount=type=bind,source=deploy/image,target=/lock --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip <<'RUN'
set -eu
torch=$(grep -o '^torch==[^ ]*' /lock/torch.txt)
if ls /wheels/torch-*.whl >/dev/null 2>&1; then
  pip install --quiet --no-deps --no-index --find-links /wheels --target /opt/torch "$torch"
elif [ -n "$TORCH_INDEX" ]; then
  pip install --quiet --no-deps --index-url "$TORCH_INDEX" --target /opt/torch "$torch"
else
  echo 'Neither a build context "wheels" nor TORCH_INDEX is given: taking PyTorch with CUDA from PyPI.'
  pip install --quiet --no-deps --require-hashes --target /opt/torch -r /lock/torch.txt
fi
RUN

# hadolint ignore=DL3006
FROM torch-${DEVICE} AS torch
# nobody imports these: headers for C++ extensions, test programs, a protobuf compiler
RUN rm -rf /opt/torch/torch/include /opt/torch/torch/test /opt/torch/torch/share/cmake \
    && find /opt/torch/torch/bin -mindepth 1 -not -name torch_shm_manager -delete

FROM build AS libraries
RUN --mount=type=bind,source=deploy/image,target=/lock --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --no-deps --require-hashes --target /opt/libraries -r /lock/serving.txt

FROM build AS training-libraries
RUN --mount=type=bind,source=deploy/image,target=/lock --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --no-deps --require-hashes --target /opt/training-libraries -r /lock/training.txt

# with the setuptools that is locked, not the newest one
FROM libraries AS project
ENV PYTHONPATH=/opt/libraries
COPY pyproject.toml README.md stepdial.py ./
COPY kernels kernels
COPY diffusion diffusion
COPY server server

FROM project AS code
RUN pip install --no-cache-dir --quiet --no-deps --no-build-isolation --target /app .

FROM project AS training-code
COPY training training
COPY benchmarks benchmarks
RUN pip install --no-cache-dir --quiet --no-deps --no-build-isolation --target /app .


# ---- What runs ----

FROM base AS runtime-cpu

FROM base AS runtime-cuda
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles a C file once in each container, its bridge to the driver: gcc, libc's headers and Python's, which the base has
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && test -e "$(python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h"

# hadolint ignore=DL3006
FROM runtime-${DEVICE} AS runtime
ENV PATH=/app/bin:$PATH \
    PYTHONPATH=/app:/opt/libraries:/opt/torch \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    TRITON_CACHE_DIR=/tmp/triton
COPY --link --from=torch /opt/torch /opt/torch
COPY --link --from=libraries /opt/libraries /opt/libraries
COPY --link families/shapes /app/families/shapes
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["stepdial"]
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG COMMIT=unknown
ENV STEPDIAL_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="stepdial" \
      org.opencontainers.image.description="Fast image generation with one dial, the number of sampling steps" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"

FROM runtime AS training
COPY --link --from=training-libraries /opt/training-libraries /opt/training-libraries
COPY --link --from=training-code /app /app
ENV PYTHONPATH=/app:/opt/libraries:/opt/training-libraries:/opt/torch
WORKDIR /work
CMD ["--help"]

FROM runtime AS serving
COPY --link --from=code /app /app
ENV STEPDIAL_HOST=0.0.0.0 STEPDIAL_PORT=8000
EXPOSE 8000
HEALTHCHECK --start-period=10m --start-interval=3s --interval=10s --timeout=5s --retries=3 CMD ["python", "-IS", "-c", \
  "import os, socket, sys; s = socket.create_connection(('127.0.0.1', int(os.environ['STEPDIAL_PORT'])), 4); s.sendall(b'GET /readyz HTTP/1.0\\r\\n\\r\\n'); sys.exit(b' 200 ' not in s.recv(32))"]
CMD ["serve"]

FROM serving AS listing
ARG CYCLONEDX=7.5.0
# hadolint ignore=DL3002
USER 0
WORKDIR /sbom
RUN python -m venv /tool \
    && env --unset=PYTHONPATH /tool/bin/pip install --no-cache-dir --quiet "cyclonedx-bom==${CYCLONEDX}" \
    && /tool/bin/cyclonedx-py environment --output-reproducible --output-file python.cdx.json "$(command -v python)" \
    && dpkg-query --show > debian.tsv

FROM scratch AS sbom
COPY --from=listing /sbom /

FROM serving
