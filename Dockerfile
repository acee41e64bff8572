# The cluster image: Hopper GPUs, CUDA 13, Python 3.12. Build: docker build -t sama-mega .
# This base and not one with torch inside, because those carry pre-releases outside the tested range of versions.
FROM nvidia/cuda:13.0.2-cudnn-devel-ubuntu24.04

RUN apt-get update \
 && apt-get install -y --no-install-recommends git ninja-build python3.12-dev python3.12-venv \
 && rm -rf /var/lib/apt/lists/*
ENV VIRTUAL_ENV=/opt/venv
ENV PATH=$VIRTUAL_ENV/bin:$PATH
RUN python3.12 -m venv "$VIRTUAL_ENV" \
 && pip install --no-cache-dir torch==2.11.0 triton==3.6.0 setuptools pybind11 ninja nvidia-cudnn-frontend

WORKDIR /opt/sama-mega
COPY . .
# Transformer Engine compiles against the torch above (it must not fetch another): 84 s on 16 cores.
ENV NVTE_WITH_NCCL_EP=0 NVTE_CUDA_ARCHS=90 NVTE_FRAMEWORK=pytorch CPATH=$VIRTUAL_ENV/include
RUN pip install --no-cache-dir --no-build-isolation ".[dali,encoders,gpu]"

WORKDIR /workspace
ENTRYPOINT ["sama-mega"]
