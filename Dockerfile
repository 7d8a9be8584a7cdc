# One image for all processes: `python -m broker`, `python -m workers`, `python -m frontend`, and also
# `python -m frontend.batches`.
# Targets: `cpu` (the default), and `intel` with user-space drivers for Intel GPUs and NPUs (see docs/docker.md).
# The tag receives security updates, which a digest would not; for builds that never change, give a digest:
# --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS packages
# Package index, if not PyPI. The final image does not contain these arguments.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
RUN python -m venv /opt/venv
COPY scripts/requirements.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip install --disable-pip-version-check --require-hashes --only-binary :all: \
    --requirement /tmp/requirements.txt

FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="Vecmill" org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 vecmill \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vecmill \
    # A new volume gets the owner of the folder that it is mounted on.
    && install --directory --owner vecmill --group vecmill --mode 0700 /keys/broker /keys/worker /keys/frontend /cache \
       /data \
    && install --directory /model
COPY --from=packages /opt/venv /opt/venv
# After the packages, so that a change of the code does not install them again.
WORKDIR /opt/vecmill
COPY broker broker
COPY workers workers
COPY frontend frontend
COPY LICENSE* ./
# The user of the image cannot write bytecode here.
RUN /opt/venv/bin/python -m compileall -q .
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    VECMILL_BROKER_HEALTH_FILE=/tmp/health \
    VECMILL_WORKER_HEALTH_FILE=/tmp/health \
    VECMILL_WORKER_CACHE=/cache \
    VECMILL_FRONTEND_HOST=0.0.0.0
USER 10001:10001
STOPSIGNAL SIGTERM
# Brokers, workers and runners of batches touch this file every second while they are healthy. compose.yaml has the
# frontend's check.
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 \
    CMD find /tmp/health -newermt "-15 seconds" | grep -q .

FROM runtime AS intel
USER root
# Debian's GPU driver, and the .deb files of the optional folder drivers/, which may replace it.
COPY drivers* /tmp/drivers/
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ocl-icd-libopencl1 intel-opencl-icd \
       $(find /tmp/drivers -name '*.deb') \
    && rm -rf /var/lib/apt/lists/* /tmp/drivers
USER 10001:10001

FROM runtime AS cpu
