# One image for all services; SERVICE chooses which one a container runs:
#     docker build -t openbell .                               every service can run (large: market data, charts, chains)
#     docker build -t openbell-api --build-arg SERVICE=api .   only this one, with only what it needs
# Two builds of one commit have the same layers, byte for byte; SOURCE_DATE_EPOCH (`make image` sets it) dates the image.
# To the patch, here alone: the same base until somebody moves it, which the nightly scan asks for once a newer one mends
# what it finds. No registry was in reach that tells its digest; put it behind the tag where you need the same bytes.
ARG PYTHON_IMAGE=python:3.13.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS wheels
WORKDIR /build
# --no-deps: the lock names everything, with hashes. What comes from where is for pip's own configuration to say.
COPY requirements.lock ./
RUN pip wheel --quiet --disable-pip-version-check --no-cache-dir --require-hashes --no-deps \
        --wheel-dir /wheels --requirement requirements.lock
# A wheel of ours without code: what each service depends on. Code may change and all this stays as it is.
COPY pyproject.toml LICENSE ./
RUN pip wheel --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-index --find-links /wheels --wheel-dir /wheels .

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS installed
ARG SERVICE=
COPY --from=wheels /wheels /wheels
# The versions are those of the wheels, which are those of the lock. Then away with 145 MB that nothing of ours uses: faker,
# with which Litestar would invent example values, libraries' tests, and what a debugger would read of some of them in C.
# What lies below a folder of /layers becomes a layer. A folder that is copied with the one above it keeps its time, and one
# that the base image has does not: hence /venv, and nothing below /opt.
# hadolint ignore=DL3008,DL3013
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends binutils >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
        --no-index --find-links /wheels "openbell[${SERVICE:-services}]" \
    && rm -rf /venv/lib/python*/site-packages/faker \
    && find /venv -type d -name tests -prune -exec rm -rf {} + \
    && for one in asyncpg greenlet multidict sqlalchemy uvloop yaml; do \
        find /venv -path "*/${one}/*.so" -exec strip --strip-debug {} + ; done \
    && mkdir -p /layers/venv /layers/app/app && mv /venv /layers/venv && ln -s /layers/venv/venv /venv && ln -s /layers/app/app /app
COPY services /layers/app/app/services
COPY shared /layers/app/app/shared
WORKDIR /layers/app/app
ENV PYTHONDONTWRITEBYTECODE=1 HOME=/app
# The sessions of the exchange are worked out here, for there is nowhere to keep them later. Some libraries ship files
# that are no Python (ccxt), which nobody imports: only what is ours has to compile. All files get one date, whatever the
# commit: BuildKit's cache looks at what they hold and not at their dates, and would mix those of several builds.
RUN /venv/bin/python -c "import asyncio, importlib.util as installed; \
from shared.xnys import load_sessions; \
installed.find_spec('exchange_calendars') and asyncio.run(load_sessions())" \
    && { /venv/bin/python -m compileall -qq --invalidation-mode unchecked-hash /venv/lib || : ; } \
    && /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app \
    && find /layers -exec touch --no-dereference --date @0 {} +

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS image
ARG SERVICE=
ARG REVISION=unknown
LABEL org.opencontainers.image.title="openbell" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=installed /layers/venv /
COPY --from=installed /layers/app /
WORKDIR /app
ENV PATH="/venv/bin:${PATH}" \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/app \
    MPLCONFIGDIR=/tmp \
    SERVICE=${SERVICE} \
    OPENBELL_HTTP_HOST=0.0.0.0 \
    OPENBELL_HTTP_PORT=8080
# A number, so that Kubernetes can see that it is not root. It owns nothing: the file system may be read-only.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=4); c.request('GET', '/readyz'); \
raise SystemExit(c.getresponse().status != 200)"]
# exec: the service is process 1 and hears SIGTERM itself. Anything else runs as `docker run openbell python -m ...`.
CMD ["sh", "-c", "exec python -m \"services.${SERVICE:?must name the service to run}\""]
