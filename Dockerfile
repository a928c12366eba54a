# Serves an exported model; docs/serving.md explains the use. Only the light installation is inside:
# NumPy, ONNX Runtime, Typer and the web server, without PyTorch.
FROM python:3.13-slim AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY minigpt minigpt
# further packages: --build-arg PACKAGES=tokenizers for a model with subword tokens
ARG PACKAGES=
RUN python -m venv /opt/minigpt && /opt/minigpt/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]' $PACKAGES

FROM python:3.13-slim
COPY --from=build /opt/minigpt /opt/minigpt
ENV PATH=/opt/minigpt/bin:$PATH
# the folder of the page, if one is mounted at /srv/page
WORKDIR /srv
USER nobody
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
CMD ["minigpt-cli", "serve", "--host", "0.0.0.0", "--model", "/models/minigpt.onnx"]
