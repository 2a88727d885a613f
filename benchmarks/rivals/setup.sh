#!/bin/sh
# Makes the rivals' environments and models in a folder, from a GGUF checkpoint of SmolLM2-135M-Instruct:
#   benchmarks/rivals/setup.sh MODEL.gguf DIR
# Every rival gets the weights of the GGUF file, dequantised. llama.cpp needs a compiler and cmake.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
gguf=$(realpath "$1")
mkdir -p "$2"
cd "$2"

# torch first and pinned, so that no later install replaces it.
torch="torch==2.13.0"

if [ ! -d genai-tuned-b128 ]; then
  python3 -m venv genai
  genai/bin/pip install -q "$torch"
  genai/bin/pip install -q "$torch" onnxruntime-genai==0.18.0 onnx-ir transformers==5.23.0 accelerate gguf \
    sentencepiece
  genai/bin/python "$here/dequantise.py" "$gguf" hf
  for block in 32 128; do
    common="accuracy_level=4 block_size=$block"
    build="genai/bin/python -m onnxruntime_genai.models.builder -i hf -p int4 -e cpu -c cache"
    # As built by default, and with every option that could help this model.
    $build -o "genai-b$block" --extra_options $common
    $build -o "genai-tuned-b$block" --extra_options $common \
      shared_embeddings=true prune_lm_head=true fuse_mlp_gate_up=true
  done
fi

if [ ! -f llama-q4_0.gguf ]; then
  python3 -m venv llamacpp
  llamacpp/bin/pip install -q llama-cpp-python==0.3.36
  llamacpp/bin/python "$here/requantise.py" "$gguf" llama-q4_0.gguf
fi

if [ ! -d openvino-g32 ]; then
  python3 -m venv openvino
  openvino/bin/pip install -q "$torch"
  openvino/bin/pip install -q "$torch" openvino-genai==2026.4.1 nncf==3.4.0 "optimum-intel[openvino]==2.2.0"
  openvino/bin/pip uninstall -q -y torchvision # not needed, and built for another torch
  openvino/bin/optimum-cli export openvino -m hf --task text-generation-with-past --weight-format int4 \
    --group-size 32 --ratio 1.0 --sym --disable-convert-tokenizer openvino-g32
fi
