#!/bin/sh
# Makes an environment for each quantising rival in a folder: benchmarks/rivals/quality/setup.sh DIR
set -eu
mkdir -p "$1"
cd "$1"
# torch first and pinned, so that no later install replaces it by one with CUDA.
torch="torch==2.13.0"

environment() { # NAME PACKAGE...
  name=$1
  shift
  [ -d "$name" ] || python3 -m venv "$name"
  "$name/bin/pip" install -q "$torch"
  "$name/bin/pip" install -q "$torch" "$@"
}

environment llm_compressor llmcompressor==0.14.0.1
environment modelopt nvidia-modelopt==0.47.0 transformers==5.23.0 accelerate requests datasets
environment torchao torchao==0.18.0 transformers==5.23.0 accelerate
# It asks for a newer torch than the others, and runs with this one.
environment gptqmodel transformers==5.23.0 accelerate safetensors threadpoolctl packaging device-smi protobuf pillow requests \
  pypcre tokenicer logbar jinja2 ninja datasets dill torchao==0.18.0 defuser
gptqmodel/bin/pip install -q --no-deps gptqmodel==7.7.0
