# syntax=docker/dockerfile:1
# Two images: `api` (web side, no torch) and `worker` (both queues, torch).
#   docker build --target api -t lethe-api .
#   docker build --target worker -t lethe-worker .
FROM python:3.11-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_INPUT=1 \
    PATH=/opt/venv/bin:$PATH
RUN groupadd --system --gid 10001 lethe \
    && useradd --system --uid 10001 --gid lethe --home-dir /var/lib/lethe --shell /usr/sbin/nologin lethe \
    && install --directory --owner=lethe --group=lethe --mode=0700 /var/lib/lethe
WORKDIR /srv/lethe

# Requirements come first and alone, so that a change of code does not install them again.
FROM base AS requirements
COPY pyproject.toml constraints.txt ./
RUN python - <<'SCRIPT'
import pathlib
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
api = project["dependencies"]
pathlib.Path("api.txt").write_text("\n".join(api))
pathlib.Path("worker.txt").write_text("\n".join(api + project["optional-dependencies"]["worker"]))
SCRIPT

FROM requirements AS api-libraries
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv && pip install --constraint constraints.txt --requirement api.txt

FROM requirements AS worker-libraries
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv && pip install --constraint constraints.txt --requirement worker.txt

FROM base AS api
COPY --from=api-libraries /opt/venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY migrations migrations
COPY app app
RUN pip install --no-cache-dir --no-deps --editable .
USER lethe
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["uvicorn", "app.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", "--timeout-graceful-shutdown", "10"]

FROM base AS worker
COPY --from=worker-libraries /opt/venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY migrations migrations
COPY app app
COPY worker worker
RUN pip install --no-cache-dir --no-deps --editable .
USER lethe
# Celery must be process 1 to get the stop signal.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "python -m celery -A worker.celery_app inspect ping -d gpu@$(hostname) -t 20"]
CMD ["celery", "-A", "worker.celery_app", "worker", "-Q", "gpu", "-c", "1", "-P", "prefork", "-n", "gpu@%h", "--loglevel", "INFO"]
