"""Runs the quantising rivals, each in its own environment (setup.sh), one after the other.

    python benchmarks/rivals/quality/run.py ENVIRONMENTS MODEL CALIB.npz OUT [--only TEXT] [--chunks 32]

OUT gets a folder for each row, `TOOL ROW`, with float weights and record.json; what a rival cannot do here is kept as its
error. `benchmarks/quality.py --rivals OUT` measures them all.
"""

import argparse
import json
import subprocess
from pathlib import Path

ROWS = {
    "llm_compressor": ("gptq int4 g64 symmetric", "gptq int4 g64 asymmetric", "awq int4 g64", "gptq int3 g64 symmetric",
                       "gptq nvfp4", "gptq mxfp4", "smoothquant gptq w8a8"),
    "gptqmodel": ("gptq int4 g128 symmetric", "gptq int4 g64 symmetric", "gptq int3 g64 symmetric"),
    "modelopt": ("awq int4 g128", "nvfp4 awq", "mxfp4"),
    "torchao": ("rtn int4 g64", "hqq int4 g64"),
}
"""llm-compressor takes no groups of 128 here: 576 inputs are no multiple of it."""


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("environments", "model", "calib", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--chunks", default="32", help="calibration chunks of 1,024 tokens")
    args = parser.parse_args()
    here = Path(__file__).parent
    for tool, rows in ROWS.items():
        for row in rows:
            out = args.out / f"{tool} {row}"
            if args.only not in out.name or (out / "record.json").exists():
                continue
            script = here / (f"{tool}.py" if (here / f"{tool}.py").exists() else f"{tool}_.py")
            # The environment is named by its python, which must not be followed to the one it links to.
            python = args.environments.absolute() / tool / "bin/python"
            command = [python, script, args.model, args.calib, out, "--row", row, "--chunks", args.chunks]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                out.mkdir(parents=True, exist_ok=True)
                error = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
                (out / "record.json").write_text(json.dumps({"error": error[:300]}) + "\n")
            print(out.name, (out / "record.json").read_text().strip(), flush=True)


if __name__ == "__main__":
    main()
