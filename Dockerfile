# The worker for Runpod serverless. CUDA comes with torch's own wheels (13.0), so the base needs
# none; the host's driver has to be 580 or newer.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY Makefile requirements.lock requirements-cuda.lock ./
RUN make PYTHON=python3 .venv/.runtime

FROM python:3.12-slim-bookworm
ENV PYTHONUNBUFFERED=1 HF_HOME=/runpod-volume/huggingface-cache
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY *.py ./
COPY actions actions
COPY attribution attribution
COPY delivery delivery
COPY loading loading
COPY remote remote
COPY web_assets web_assets
COPY steering steering
COPY demo/model demo/model
COPY demo/transcoders demo/transcoders
CMD ["/app/.venv/bin/python", "-u", "handler.py"]
