"""Every kernel of well-known decoders, compiled ahead of time for chips that need not be there: does it fit?

    python benchmarks/kernels.py [--model NAME ...] [--weights FORMAT ...] [--chip N ...] [--json FILE] [--minutes N]

A kernel fits when nothing spills out of its registers and a block has the shared memory it wants. Caches lie in pages, as
sessions have them, and in one piece. Kernels of the same source are compiled once, also over several runs into the same file: a
run that is stopped, or was given some minutes only, goes on where the last one ended. Correctness stands in
tests/backends/triton.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ingot.backends.triton.kernel import Kernel

CHIPS = (80, 90, 100)
WEIGHTS = ("bf16", "int4", "int8", "nf4", "fp8-e4m3", "mxfp4", "nvfp4", "int8+int8", "fp8-e4m3+fp8-e4m3", "mxfp4+mxfp8")
SMALL_FLOATS = 89
"""The first chip that has 8-bit floats: products of such codes are for it and later ones."""


@click.command()
@click.option("--model", "models", multiple=True, help="smollm2-135m, llama-3.2-1b, llama-3.1-8b [default: all].")
@click.option("--weights", multiple=True, help="bf16, a format of codes, or that and one of inputs [default: ten].")
@click.option("--chip", "chips", multiple=True, type=int, help="Compute capabilities [default: 80, 90, 100].")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Where the records go; earlier ones are kept.")
@click.option("--minutes", type=float, default=float("inf"), help="Stop after so long.")
def main(models: tuple[str, ...], weights: tuple[str, ...], chips: tuple[int, ...], out: Path | None, minutes: float) -> None:
    """Compile the kernels of decoders for three generations of chips."""
    import triton
    from gpu.models import SHAPES, Shape, decoder

    from ingot.backends.triton.aot import compiled
    from ingot.backends.triton.groups import partition
    from ingot.backends.triton.paging import PAGE, pageable

    end = time.monotonic() + 60 * minutes
    data: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    if data.get("triton") != triton.__version__:
        data = {"triton": triton.__version__, "kernels": {}, "decoders": {}}
    known, misfits, left = data["kernels"], 0, 0
    for name in models or SHAPES:
        for kind in weights or WEIGHTS:
            # Layers are alike: two of them have every kernel that more have, between layers as well as at the ends.
            func = decoder(Shape(name, {**SHAPES[name], "num_hidden_layers": 2}), weights=kind).main
            groups = partition(func, paged=pageable(func, PAGE))
            kernels = {digest(k): k for g in (*groups, *partition(func)) for v in g.variants for k in v.kernels}
            missing = []
            able = [c for c in chips or CHIPS if c >= SMALL_FLOATS or "fp8" not in kind.partition("+")[2]]
            for key, kernel in kernels.items():
                found = known.setdefault(key, {"name": kernel.name})
                for chip in map(str, able):
                    if chip not in found and time.monotonic() < end:
                        made = compiled(kernel, int(chip))
                        found[chip] = {"registers": made.registers, "spilled": made.spilled, "shared": made.shared,
                                       "loads": made.loads, "fits": made.fits}
                    if chip not in found:
                        missing.append(f"{kernel.name} sm_{chip}")
            wrong = [f"{known[key]['name']} sm_{chip}" for key in kernels for chip, result in known[key].items()
                     if chip != "name" and not result["fits"]]
            misfits, left = misfits + len(wrong), left + len(missing)
            data["decoders"][f"{name} {kind}"] = {
                "groups": len(groups), "without": sorted({g.reason for g in groups if not g.variants}), "kernels": list(kernels),
                "misfits": wrong, "not_compiled": missing}
            click.echo(f"{name:14} {kind:17} {len(groups):3} groups  {len(kernels):3} kernels  {len(wrong)} misfits  "
                       f"{len(missing)} not compiled")
            if out is not None:
                out.write_text(json.dumps(data, indent=1) + "\n")
    named = {key for made in data["decoders"].values() for key in made["kernels"]}
    data["kernels"] = {key: found for key, found in known.items() if key in named}
    if out is not None:
        out.write_text(json.dumps(data, indent=1) + "\n")
    total = sum(len(found) - 1 for found in data["kernels"].values())
    click.echo(f"{total} compilations, {misfits} misfits, {left} left for another run")
    sys.exit(bool(misfits))


def digest(kernel: Kernel) -> str:
    """A kernel's text and the settings it is compiled with, in short."""
    settings = sorted({**kernel.constants, **kernel.options}.items())
    return hashlib.sha256(f"{kernel.source}{settings}".encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
