"""ingot worker: `ingot_worker.py ARTIFACT [--threads N]`, run with the project's python."""

import argparse
import time
from pathlib import Path

from protocol import DECODE_STEPS, WARM_STEPS, prompt_tokens, serve

from ingot.runtime.session import Session


class Ingot:
    """One opened artifact and its timed workloads."""

    def __init__(self, artifact: Path, threads: int) -> None:
        self.session = Session.open(artifact, threads=threads)

    def prefill(self, prompt: int) -> tuple[float, int]:
        """Seconds to process one prompt of `prompt` tokens up to its last logits."""
        tokens = prompt_tokens(1, prompt)
        self.session.reset(1, reserve=prompt)
        start = time.perf_counter()
        self.session.prefill(list(tokens))
        return time.perf_counter() - start, prompt

    def decode(self, batch: int, prompt: int) -> tuple[float, int]:
        """Seconds for DECODE_STEPS greedy steps of `batch` sequences after a prompt."""
        tokens = self.session.prefill(list(prompt_tokens(batch, prompt))).argmax(-1)
        start = 0.0
        for index in range(WARM_STEPS + DECODE_STEPS):
            if index == WARM_STEPS:
                start = time.perf_counter()
            tokens = self.session.step(tokens).argmax(-1)
        return time.perf_counter() - start, DECODE_STEPS * batch


def main() -> None:
    """Open the artifact and answer the driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    files = [*args.artifact.glob("*.onnx"), args.artifact / "weights.bin", args.artifact / "ingot.json"]
    serve(Ingot(args.artifact, args.threads), files)


if __name__ == "__main__":
    main()
