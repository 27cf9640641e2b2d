# resdet in a container, on the CPU or with CUDA. docs/share.md has the commands to build and run it.
ARG BASE=python:3.12-slim
FROM ${BASE}

# Wheels of PyTorch: .../whl/cu128 brings CUDA's libraries with it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=export,hub,timm

RUN python3 -m pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.10" "torchvision>=0.25"
COPY . /src
RUN python3 -m pip install --no-cache-dir "/src[${EXTRAS}]" && rm -rf /src

# Any user may run it: what is written, caches too, lies in the folder that is mounted at /work.
RUN mkdir -m 777 /work
WORKDIR /work
ENV HOME=/work
USER 1000:1000
ENTRYPOINT ["resdet"]
CMD ["--help"]
