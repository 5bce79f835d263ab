# No CUDA base: torch's own wheels carry CUDA 12.8, and a second copy would add gigabytes. What has
# to fit is the host's driver, 570 or newer: on Runpod the allowed CUDA versions 12.8 to 13.0.
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm@sha256:593bd06efe90efa80dc4eee3948be7c0fde4134606dd40d8dd8dbcade98e669c

FROM ${PYTHON_IMAGE} AS build
# make isn't pinned: Debian keeps one version a release, and it stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY Makefile requirements.lock requirements-cuda.lock ./
RUN PIP_NO_CACHE_DIR=1 make PYTHON=python3 .venv/.runtime

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin worker \
    && install --directory --owner worker /app/out
# torch asks for the user's name, which under another number than the worker's nothing else tells.
ENV PATH=/app/.venv/bin:$PATH \
    USER=worker \
    HOME=/home/worker \
    HF_HOME=/runpod-volume/huggingface-cache \
    PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY entrypoint.sh test_input.json ./
COPY handler.py start.py model_loader.py schemas.py settings.py errors.py logs.py ./
COPY actions actions
COPY attribution attribution
COPY contract contract
COPY delivery delivery
COPY graphs graphs
COPY loading loading
COPY prompting prompting
# What `python handler.py` without Runpod prints. The client and the viewer are for people only.
COPY remote/__init__.py remote/
COPY remote/graphs/__init__.py remote/graphs/document.py remote/graphs/features.py \
     remote/graphs/node_names.py remote/graphs/
COPY remote/terminal/__init__.py remote/terminal/attention_summary.py \
     remote/terminal/graph_summary.py remote/terminal/intervention_summary.py \
     remote/terminal/prompt_hint.py remote/terminal/summary.py remote/terminal/text.py \
     remote/terminal/
COPY serving serving
COPY steering steering
COPY viewer/__init__.py viewer/demo_features.py viewer/
COPY web_assets/__init__.py web_assets/docs.html web_assets/
COPY web_assets/vendor/swagger-ui-dist web_assets/vendor/swagger-ui-dist
COPY demo/feature_examples.json.gz demo/feature_examples.json.gz
COPY demo/model demo/model
COPY demo/transcoders demo/transcoders
COPY demo/complete demo/complete
RUN python -m compileall -q -x '[.]venv' .
EXPOSE 5004
# It gives up root, unless only root may write to the weights' volume.
ENTRYPOINT ["/app/entrypoint.sh"]
CMD ["python", "-u", "handler.py"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ENV WORKER_VERSION=${VERSION} WORKER_REVISION=${REVISION}
LABEL org.opencontainers.image.title="attribution-worker" \
      org.opencontainers.image.description="Attribution graphs and steering with circuit-tracer" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The same with a model's weights inside. The token is read from the secret, and is in no layer; nor
# are the hub client's logs, which would leave a folder of root's where weights go at run time.
FROM runtime AS baked
ARG MODEL_ID=""
ARG TRANSCODER_SET=""
ENV MODEL_ID=${MODEL_ID} TRANSCODER_SET=${TRANSCODER_SET}
RUN --mount=type=secret,id=hf_token \
    HF_HUB_CACHE="$PWD/weights" HF_HOME="$PWD/hub-client" python model_loader.py prefetch \
    && rm -rf hub-client

FROM runtime AS worker
