"""llama.cpp worker: `llama_cpp.py MODEL.gguf [--threads N]`, run with the llama.cpp environment's python."""

import sys

# This file carries the name of the package it imports: look that up before the script's own folder.
sys.path.append(sys.path.pop(0))

import argparse
import ctypes
import time
from pathlib import Path

import llama_cpp as llama
import numpy as np
from protocol import DECODE_STEPS, VOCABULARY, WARM_STEPS, prompt_tokens, serve


class LlamaCpp:
    """One loaded GGUF file and its timed workloads, through the C interface."""

    def __init__(self, path: Path, threads: int) -> None:
        self.threads = threads
        self.silence = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(self.silence, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())

    def prefill(self, prompt: int) -> tuple[float, int]:
        """Seconds to process one prompt of `prompt` tokens up to its last logits."""
        with Sequences(self.model, 1, prompt + 8, self.threads) as sequences:
            start = time.perf_counter()
            sequences.step(prompt_tokens(1, prompt))
            return time.perf_counter() - start, prompt

    def decode(self, batch: int, prompt: int) -> tuple[float, int]:
        """Seconds for DECODE_STEPS greedy steps of `batch` sequences after a prompt."""
        with Sequences(self.model, batch, prompt + WARM_STEPS + DECODE_STEPS + 8, self.threads) as sequences:
            tokens = sequences.step(prompt_tokens(batch, prompt))
            start = 0.0
            for index in range(WARM_STEPS + DECODE_STEPS):
                if index == WARM_STEPS:
                    start = time.perf_counter()
                tokens = sequences.step(tokens)
            return time.perf_counter() - start, DECODE_STEPS * batch


class Sequences:
    """A context holding `batch` sequences of at most `length` tokens."""

    def __init__(self, model: llama.llama_model_p, batch: int, length: int, threads: int) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx = -(-length // 256) * 256 * batch
        params.n_batch = max(length * batch, 512)
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(model, params)
        self.batch = llama.llama_batch_init(params.n_batch, 0, 1)
        self.position = 0

    def __enter__(self) -> "Sequences":
        return self

    def __exit__(self, *error: object) -> None:
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Append tokens [batch, n] to the sequences; returns the likeliest next ones [batch, 1]."""
        rows, columns = tokens.shape
        lasts = []
        for index, (row, column) in enumerate(np.ndindex(rows, columns)):
            self.batch.token[index] = int(tokens[row, column])
            self.batch.pos[index] = self.position + column
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = row
            self.batch.logits[index] = column == columns - 1
            if column == columns - 1:
                lasts.append(index)
        self.batch.n_tokens = rows * columns
        self.position += columns
        if llama.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        logits = [llama.llama_get_logits_ith(self.context, index) for index in lasts]
        return np.array([[np.ctypeslib.as_array(row, (VOCABULARY,)).argmax()] for row in logits])


def main() -> None:
    """Load the model and answer the driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    serve(LlamaCpp(args.path, args.threads), [args.path])


if __name__ == "__main__":
    main()
