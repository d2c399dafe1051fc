# The service's image: API, task workers, and the queue's server. BuildKit and Docker's classic builder both make it:
#   docker build --tag facial-service .
# A read-only root file system is enough; what has to be writable is /tmp, PROMETHEUS_MULTIPROC_DIR where it is set, and
# DATA_DIR where `serve` starts the queue itself (NATS_URL empty).

# Debian with Python 3.11 to 3.13.
ARG BASE_IMAGE=python:3.13-slim-bookworm

# --- packages, as requirements.lock pins them -------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS locked
# An index instead of PyPI; pip's own default where it is not given.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_PYTHON=/opt/venv/bin/python
COPY requirements.lock /build/
# Wheels alone, so that no compiler is needed; nkeys comes as source, and is pure Python. What builds it is pinned as
# well: the lock's setuptools goes first, for a build in isolation would take the newest one and look at no hash.
RUN python -m venv --without-pip /opt/venv \
    && sed -n '/^setuptools==/,/[^\\]$/p' /build/requirements.lock >/build/first.lock \
    && pip install --no-compile --require-hashes --only-binary :all: --requirement /build/first.lock \
    && pip install --no-compile --require-hashes --only-binary :all: --no-binary nkeys \
        --no-build-isolation --use-pep517 --requirement /build/requirements.lock

# --- the service itself, as a wheel -----------------------------------------------------------------------------------
FROM locked AS service
ARG SOURCE_DATE_EPOCH=0
# The models that find faces, out of a pinned wheel, each checked by its hash; they become part of the service's wheel.
COPY tools/models.py tools/tflite.py tools/models.lock /build/tools/
RUN PYTHONPATH="$(echo /opt/venv/lib/python3*/site-packages)" python /build/tools/models.py --into /build/app/models
COPY pyproject.toml README.md LICENSE NOTICE /build/
COPY app/ /build/app/
RUN pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels /build \
    && pip install --no-compile --no-deps --no-index --prefix /service /wheels/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash /service \
    && find /service -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

# --- the packages without what only builds or tests -------------------------------------------------------------------
FROM locked AS packages
ARG SOURCE_DATE_EPOCH=0
# Bytecode halves the time to start. It is marked as never to be checked, so that it holds whatever becomes of times,
# and times are set so that the same lock gives the same files. What -x names, the service does not load; httpx would
# load some of it for a command of its own, which goes.
RUN pip uninstall --quiet --yes setuptools \
    && cd /opt/venv/lib/python3*/site-packages \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && rm httpx/_main.py /opt/venv/bin/httpx \
    && find . -type f \( -name '*.pyi' -o -name '*.py[dx]' -o -name '*.px[di]' -o -name '*.[ach]' \) -delete \
    && python -m compileall -q -j 0 -x '/(pygments|numpy/(distutils|f2py))/' \
        --invalidation-mode unchecked-hash . \
    && find /opt/venv -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

# --- what runs --------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}
# The base's pip goes: nothing is to be installed into what runs.
RUN find / -xdev \( -path '*/bin/pip*' -o -path '*-packages/pip*' -o -path '*-packages/setuptools*' \
        -o -path '*-packages/pkg_resources' -o -path '*-packages/wheel*' -o -path '*/python3*/ensurepip' \
        -o -path /usr/share/python-wheels \) -prune -exec rm -r {} + \
    && echo 'facial:x:10001:10001::/:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'facial:x:10001:' >>/etc/group \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=packages /opt/venv /opt/venv
COPY --from=service /service /opt/venv

# Bytecode is there already, and the root file system may be read-only.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 DATA_DIR=/data
USER 10001:10001
EXPOSE 8000 9000
STOPSIGNAL SIGTERM
# For Docker and compose; Kubernetes has probes of its own. A look takes 40 ms of CPU.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s CMD ["python", "-I", "-S", "-c", "import http.client, os\nport = int(os.environ.get('METRICS_PORT') or 9000)\nconnection = http.client.HTTPConnection('127.0.0.1', port, timeout=2)\nconnection.request('GET', '/health/live')\nraise SystemExit(connection.getresponse().status != 200)"]
ENTRYPOINT ["facial-service"]
CMD ["serve"]

# Last, for they change with every build.
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="facial-service" \
      org.opencontainers.image.description="A photo of a face and its MediaPipe landmarks in, labelled face regions out: over HTTP, on Kubernetes, measured." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
