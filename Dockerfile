# The image of stepdial. docs/containers.md tells how to build and run it.
#
#   docker build -t stepdial .                                  serve on a CPU
#   docker build -t stepdial:cuda --build-arg DEVICE=cuda .     serve on a GPU
#   docker build -t stepdial:training --target training .       train and measure
#
# DEVICE=cpu takes PyTorch's CPU build from the build context `wheels` (a folder with the wheel) or from the package index
# TORCH_INDEX; with neither, it takes PyPI's build, which is the CUDA one and several GB larger.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG DEVICE=cpu

# where --build-context wheels=FOLDER is not given
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 10001 stepdial \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin stepdial \
    && install -d -o 10001 -g 10001 /keys

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

FROM build AS torch-cuda
RUN --mount=type=bind,source=deploy/image,target=/lock --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --no-deps --require-hashes --target /opt/torch -r /lock/torch.txt

FROM build AS torch-cpu
ARG TORCH_INDEX=
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=bind,source=deploy/image,target=/lock --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip <<'RUN'
torch=$(grep -o '^torch==[^ ]*' /lock/torch.txt)
if compgen -G '/wheels/torch-*.whl' >/dev/null; then
  pip install --quiet --no-deps --no-index --find-links /wheels --target /opt/torch "$torch"
elif [ -n "$TORCH_INDEX" ]; then
  pip install --quiet --no-deps --index-url "$TORCH_INDEX" --target /opt/torch "$torch"
else
  echo "neither a build context 'wheels' nor TORCH_INDEX: taking PyPI's build of PyTorch, with CUDA"
  pip install --quiet --no-deps --require-hashes --target /opt/torch -r /lock/torch.txt
fi
RUN

# hadolint ignore=DL3006
FROM torch-${DEVICE} AS torch

FROM build AS libraries
RUN --mount=type=bind,source=deploy/image,target=/lock --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --no-deps --require-hashes --target /opt/libraries -r /lock/serving.txt

FROM libraries AS training-libraries
RUN --mount=type=bind,source=deploy/image,target=/lock --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --no-deps --require-hashes --target /opt/training -r /lock/training.txt

FROM libraries AS code
ENV PYTHONPATH=/opt/libraries
COPY pyproject.toml README.md stepdial.py ./
COPY kernels kernels
COPY diffusion diffusion
COPY server server
RUN pip install --quiet --no-deps --no-build-isolation --target /app .

FROM code AS training-code
COPY training training
COPY benchmarks benchmarks
RUN pip install --quiet --no-deps --no-build-isolation --upgrade --target /app .

FROM base AS cpu

FROM base AS cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM ${DEVICE} AS runtime
ENV PYTHONPATH=/app:/opt/libraries:/opt/torch \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TRITON_CACHE_DIR=/tmp/triton
COPY --link --from=torch /opt/torch /opt/torch
COPY --link --from=libraries /opt/libraries /opt/libraries
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "stepdial"]

FROM runtime AS training
COPY --link --from=training-libraries /opt/training /opt/training
ENV PYTHONPATH=/app:/opt/libraries:/opt/torch:/opt/training
COPY --link --from=training-code /app /app
COPY --link families/shapes /app/families/shapes
WORKDIR /work
CMD ["--help"]

FROM runtime AS serving
ARG VERSION=0.1.0
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="stepdial" \
      org.opencontainers.image.description="Fast image generation with one dial, the number of sampling steps" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
ENV STEPDIAL_HOST=0.0.0.0 STEPDIAL_PORT=8000
COPY --link families/shapes /app/families/shapes
COPY --link --from=code /app /app
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=1s --retries=3 \
  CMD ["python", "-S", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['STEPDIAL_PORT'] + '/readyz', timeout=4)"]
CMD ["serve"]
