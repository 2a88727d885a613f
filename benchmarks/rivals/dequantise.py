"""A GGUF file as a float Hugging Face checkpoint: `dequantise.py MODEL.gguf OUT`."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load through transformers, which dequantises, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    where = {"gguf_file": args.gguf.name}
    model = AutoModelForCausalLM.from_pretrained(args.gguf.parent, dtype=torch.float32, **where)
    # transformers refuses to save a model that came from GGUF although its weights are floats by now.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.gguf.parent, **where).save_pretrained(args.out)


if __name__ == "__main__":
    main()
