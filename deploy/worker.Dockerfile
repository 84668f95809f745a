# One image for the three roles of a training cluster, so that versions agree everywhere:
#   Ray head with the runner   bash deploy/ray-head.sh
#   Ray worker                 ray start --block --address=HEAD:6379
#   runner alone               python -m roadless.worker.runner   (on a Ray node of somebody else's making)
FROM python:3.12-slim AS build
# CPU wheels. For the CUDA build: https://pypi.org/simple, or .../whl/cu130 for a certain version.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/roadless/bin:$PATH
RUN python -m venv /opt/roadless
WORKDIR /src
# Without what its package links to, the project installs as its dependencies alone: a layer that
# only changes when they do.
COPY pyproject.toml constraints.txt README.md ./
COPY src src
RUN pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" ".[worker,data,transformers]"
COPY migrations migrations
COPY optim optim
COPY service service
# No setup.py: it would ask for the chart library of a dashboard that no worker serves.
COPY worker worker
RUN pip install --no-deps --force-reinstall .

FROM python:3.12-slim
COPY --from=build /opt/roadless /opt/roadless
# The numeric id is the service image's too: the runner reads a file that the service has written.
# A new volume takes over the owner and mode of the folder it is mounted on.
RUN useradd --uid 10001 --create-home roadless \
    && install -d -o roadless -g roadless -m 0700 /var/lib/roadless /run/roadless
ENV PATH=/opt/roadless/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /opt/roadless
COPY deploy/ray-head.sh deploy/
USER 10001
VOLUME /var/lib/roadless
CMD ["python", "-m", "roadless.worker.runner"]
