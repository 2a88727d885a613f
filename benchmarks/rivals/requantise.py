"""A GGUF file in llama.cpp's Q4_0: `requantise.py MODEL.gguf OUT.gguf`."""

import argparse

import llama_cpp


def main() -> None:
    """Quantise the file's dequantised weights anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("out")
    args = parser.parse_args()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(args.gguf.encode(), args.out.encode(), params) != 0:
        raise SystemExit(f"llama.cpp could not quantise {args.gguf}")


if __name__ == "__main__":
    main()
