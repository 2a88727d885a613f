"""OpenVINO GenAI worker: `openvino.py MODEL_DIR [--threads N]`, run with that environment's python."""

import sys
from pathlib import Path

# This file carries the name of the package it imports: look that up before the script's own folder.
sys.path.append(sys.path.pop(0))

import argparse

import numpy as np
import openvino
import openvino_genai
from protocol import DECODE_STEPS, WARM_STEPS, prompt_tokens, serve


class OpenVino:
    """One loaded LLMPipeline and its timed workloads, read from the pipeline's own time stamps."""

    def __init__(self, model_dir: Path, threads: int) -> None:
        self.pipeline = openvino_genai.LLMPipeline(str(model_dir), "CPU", INFERENCE_NUM_THREADS=threads)

    def _generate(self, batch: int, prompt: int, steps: int) -> openvino_genai.RawPerfMetrics:
        config = openvino_genai.GenerationConfig(max_new_tokens=steps, ignore_eos=True, do_sample=False)
        tokens = prompt_tokens(batch, prompt).astype(np.int64)
        mask = openvino.Tensor(np.ones_like(tokens))
        result = self.pipeline.generate(openvino_genai.TokenizedInputs(openvino.Tensor(tokens), mask), config)
        return result.perf_metrics.raw_metrics

    def prefill(self, prompt: int) -> tuple[float, int]:
        """Seconds to the first token of one prompt."""
        return self._generate(1, prompt, 1).token_infer_durations[0] / 1e6, prompt

    def decode(self, batch: int, prompt: int) -> tuple[float, int]:
        """Seconds for DECODE_STEPS greedy steps of `batch` sequences after a prompt."""
        times = self._generate(batch, prompt, 1 + WARM_STEPS + DECODE_STEPS).m_new_token_times
        return (times[-1] - times[-1 - DECODE_STEPS]) / 1e3, DECODE_STEPS * batch


def main() -> None:
    """Load the model and answer the driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    files = [args.model_dir / "openvino_model.xml", args.model_dir / "openvino_model.bin"]
    serve(OpenVino(args.model_dir, args.threads), files)


if __name__ == "__main__":
    main()
