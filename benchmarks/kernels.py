"""Every kernel of well-known decoders, compiled ahead of time for chips that need not be there: does it fit?

    python benchmarks/kernels.py [--model NAME ...] [--weights FORMAT ...] [--json FILE]

A kernel fits when nothing spills out of its registers and a block has the shared memory it wants. Kernels of the same source
are compiled once. Correctness stands in tests/backends/triton.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

CHIPS = (80, 90, 100)
WEIGHTS = ("bf16", "int4", "int8", "nf4", "fp8_e4m3", "mxfp4", "nvfp4")


@click.command()
@click.option("--model", "models", multiple=True, help="smollm2-135m, llama-3.2-1b, llama-3.1-8b [default: all].")
@click.option("--weights", multiple=True, help="bf16, or a format of codes [default: seven].")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Where the records go; those of other models are kept.")
def main(models: tuple[str, ...], weights: tuple[str, ...], out: Path | None) -> None:
    """Compile the kernels of decoders for three generations of chips."""
    import triton
    from gpu.models import SHAPES, Shape, decoder

    from ingot.backends.triton.aot import compiled
    from ingot.backends.triton.groups import partition

    data: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    seen: dict[tuple[str, int], Any] = {}
    misfits = 0
    for name in models or SHAPES:
        for kind in weights or WEIGHTS:
            groups = partition(decoder(Shape(name, SHAPES[name]), weights=kind).main)
            kernels = {k.source: k for g in groups for v in g.variants for k in v.kernels}
            record: dict[str, Any] = {"groups": len(groups), "without": sorted({g.reason for g in groups if not g.variants}),
                                      "kernels": len(kernels), "triton": triton.__version__, "misfits": []}
            for source, kernel in kernels.items():
                for chip in CHIPS:
                    key = (source, chip)
                    if key not in seen:
                        seen[key] = compiled(kernel, chip)
                    if not seen[key].fits:
                        record["misfits"].append(str(seen[key]))
            misfits += len(record["misfits"])
            data[f"{name} {kind}"] = record
            click.echo(f"{name:14} {kind:9} {len(groups):4} groups  {len(kernels):3} kernels  {len(record['misfits'])} misfits")
            if out is not None:
                out.write_text(json.dumps(data, indent=1) + "\n")
    click.echo(f"{len(seen)} compilations, {misfits} misfits")
    sys.exit(bool(misfits))


if __name__ == "__main__":
    main()
