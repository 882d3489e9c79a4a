# Our images, one target each: `base`, `causes`, `learn`, `embedded`. They share every layer that
# they can: the packages of a target change with its lock file, the code is one layer on top.
# Only `learn` carries torch, only `causes` DoWhy, only `embedded` ClickHouse's engine.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS tools
COPY requirements/bootstrap.txt requirements/
RUN python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --no-cache-dir --require-hashes -r requirements/bootstrap.txt \
 && python3 -m venv --without-pip /opt/gpuloop
ENV VIRTUAL_ENV=/opt/gpuloop UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1

FROM tools AS packages-base
COPY requirements/base.txt requirements/observe.txt requirements/stores.txt \
  requirements/collect.txt requirements/
RUN /opt/tools/bin/uv pip sync --require-hashes requirements/base.txt requirements/observe.txt \
    requirements/stores.txt requirements/collect.txt

FROM tools AS packages-causes
COPY requirements/causes.txt requirements/
RUN /opt/tools/bin/uv pip sync --require-hashes requirements/causes.txt

FROM tools AS packages-learn
COPY requirements/learn.txt requirements/
RUN /opt/tools/bin/uv pip sync --require-hashes requirements/learn.txt

FROM tools AS packages-embedded
COPY requirements/embedded.txt requirements/
RUN /opt/tools/bin/uv pip sync --require-hashes requirements/embedded.txt

FROM tools AS code
WORKDIR /build
COPY . .
RUN /opt/tools/bin/hatchling build --target wheel --directory /tmp/wheel \
 && /opt/tools/bin/uv pip install --no-deps --target /opt/code /tmp/wheel/*.whl

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="gpuloop" \
      org.opencontainers.image.description="Event-streaming autonomous control loop for GPU clouds." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 gpuloop \
 && useradd --uid 10001 --gid gpuloop --no-create-home --home-dir /tmp --shell /usr/sbin/nologin gpuloop \
 && install --directory --owner gpuloop --group gpuloop --mode 0700 /var/lib/gpuloop \
 && install --directory --owner gpuloop --group gpuloop --mode 0755 /var/lib/gpuloop-trust \
 && install --directory --owner gpuloop --group gpuloop --mode 0700 /var/lib/gpuloop-stores \
      /var/lib/gpuloop-stores/postgres /var/lib/gpuloop-stores/clickhouse
ENV PATH=/opt/gpuloop/bin:/opt/code/bin:$PATH \
    PYTHONPATH=/opt/code \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 MALLOC_ARENA_MAX=2 \
    HOME=/tmp \
    GPULOOP_STATE_DIR=/var/lib/gpuloop \
    GPULOOP_HTTP_HOST=0.0.0.0 \
    GPULOOP_HTTP_PORT=8080
WORKDIR /var/lib/gpuloop
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=6 \
  CMD ["python3", "/opt/code/gpuloop/ops/docker/health.py"]
USER 10001:10001
ENTRYPOINT ["python3", "-m", "gpuloop.loop.services"]

FROM runtime AS base
COPY --from=packages-base /opt/gpuloop /opt/gpuloop
COPY --from=code /opt/code /opt/code

FROM runtime AS causes
COPY --from=packages-causes /opt/gpuloop /opt/gpuloop
COPY --from=code /opt/code /opt/code

FROM runtime AS learn
COPY --from=packages-learn /opt/gpuloop /opt/gpuloop
COPY --from=code /opt/code /opt/code

FROM runtime AS embedded
COPY --from=packages-embedded /opt/gpuloop /opt/gpuloop
COPY --from=code /opt/code /opt/code
