# autointerp without a GPU. Build:  docker build -t autointerp .
# Run:  docker run --rm -v autointerp-cache:/cache -v "$PWD:/work" autointerp run demo
# With a GPU:  docker build --build-arg TORCH=auto -t autointerp .  and  docker run --gpus all …
FROM python:3.12-slim

ARG TORCH=cpu
ENV UV_TORCH_BACKEND=$TORCH UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 AUTOINTERP_CACHE=/cache PYTHONUNBUFFERED=1

RUN pip install --no-cache-dir uv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY autointerp autointerp
COPY prompts prompts
COPY pipelines pipelines
RUN uv pip install ".[saelens,anthropic]" && rm -rf /src/*

RUN useradd --create-home user && mkdir /cache /work && chown user /cache /work
USER user
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["autointerp"]
CMD ["--help"]
