"""onnxruntime-genai worker: `genai.py MODEL_DIR [--threads N]`, run with the genai environment's python."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from protocol import DECODE_STEPS, WARM_STEPS, prompt_tokens, serve


class Genai:
    """One loaded onnxruntime-genai model and its timed workloads."""

    def __init__(self, model_dir: Path, threads: int) -> None:
        config = og.Config(str(model_dir))
        config.overlay(
            json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}})
        )
        self.model = og.Model(config)

    def _generator(self, batch: int, length: int) -> og.Generator:
        params = og.GeneratorParams(self.model)
        # The shared KV buffers are allocated at max_length, so it is kept at what the workload needs.
        params.set_search_options(
            batch_size=batch,
            max_length=length,
            min_length=length,
            do_sample=False,
            past_present_share_buffer=True,
        )
        return og.Generator(self.model, params)

    def prefill(self, prompt: int) -> tuple[float, int]:
        """Seconds to process one prompt of `prompt` tokens up to its last logits."""
        tokens = prompt_tokens(1, prompt)
        generator = self._generator(1, prompt + 8)
        start = time.perf_counter()
        generator.append_tokens(tokens)
        generator.get_logits()
        return time.perf_counter() - start, prompt

    def decode(self, batch: int, prompt: int) -> tuple[float, int]:
        """Seconds for DECODE_STEPS greedy steps of `batch` sequences after a prompt."""
        generator = self._generator(batch, prompt + WARM_STEPS + DECODE_STEPS + 8)
        generator.append_tokens(np.ascontiguousarray(prompt_tokens(batch, prompt)))
        for _ in range(WARM_STEPS):
            generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(DECODE_STEPS):
            generator.generate_next_token()
        return time.perf_counter() - start, DECODE_STEPS * batch


def main() -> None:
    """Load the model and answer the driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    serve(
        Genai(args.model_dir, args.threads),
        [args.model_dir / "model.onnx", args.model_dir / "model.onnx.data"],
    )


if __name__ == "__main__":
    main()
