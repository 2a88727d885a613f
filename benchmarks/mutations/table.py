"""All mutants. Left out, as no check can tell them from what they change (equivalent mutants):

- RmsNorm's `eps` not carried by fuse{norm}: the fused op's default is the norm's own. It is planted where it differs.
- Paley's second construction for primes that are 3 modulo 4: a smaller order has been found before it comes to that.
"""

from __future__ import annotations

from benchmarks.mutations import (
    adapter_bugs,
    backend_bugs,
    calibrated_bugs,
    frontend_bugs,
    graph_bugs,
    pass_bugs,
    quantization_bugs,
    runtime_bugs,
)
from benchmarks.mutations.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*graph_bugs.MUTANTS, *frontend_bugs.MUTANTS, *pass_bugs.MUTANTS, *quantization_bugs.MUTANTS,
                               *calibrated_bugs.MUTANTS, *adapter_bugs.MUTANTS, *backend_bugs.MUTANTS, *runtime_bugs.MUTANTS)
