"""Tables for people: receipts, evaluations, statistics, the list of passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

from ingot.runtime.evaluate import Comparison, Perplexity

if TYPE_CHECKING:
    from ingot.passes.pipeline import Receipt


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns aligned: numbers to the right, texts to the left."""
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [all(row[i][:1].isdigit() or row[i][:1] == "-" for row in cells[1:]) for i in range(len(header))]
    lines = ["  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)).rstrip()
             for row in cells]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def size(n: float) -> str:
    """Bytes in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


def receipt_table(receipts: Sequence[Receipt]) -> str:
    """One line per pass: sites, ops, parameters, bytes, seconds."""
    rows = [(r.stage, r.sites, f"{r.ops_before} -> {r.ops_after}", f"{r.parameters_after / 1e6:.1f} M",
             f"{size(r.bytes_before)} -> {size(r.bytes_after)}", f"{r.seconds:.2f}") for r in receipts]
    return table(("pass", "sites", "ops", "parameters", "weights", "seconds"), rows)


def evaluation_table(results: Mapping[str, Perplexity | Comparison]) -> str:
    """Perplexity with its 95 % interval per domain, and the comparison where there is one."""
    rows: list[tuple[object, ...]] = []
    compared = any(isinstance(r, Comparison) for r in results.values())
    for name, result in results.items():
        mine = result.model if isinstance(result, Comparison) else result
        low, high = mine.interval
        row: tuple[object, ...] = (name, mine.chunks, f"{mine.perplexity:.3f}", f"{low:.2f}..{high:.2f}")
        if isinstance(result, Comparison):
            row += (f"{result.reference.perplexity:.3f}", f"{result.kl.mean:.4f} ± {result.kl.stderr:.4f}",
                    f"{100 * result.top1.mean:.1f} %")
        rows.append(row)
    header = ("domain", "chunks", "perplexity", "95 %")
    return table(header + (("original", "KL (nats)", "top-1 agrees") if compared else ()), rows)


def statistics_table(counted: Mapping[str, Any]) -> str:
    """Ops and weights of a dump."""
    ops = table(("op", "count"), counted["ops"].items())
    weights = table(("weights", "elements", "bytes"),
                    [(t, f"{n:,}", size(counted["bytes"][t])) for t, n in counted["parameters"].items()])
    return f"{ops}\n\n{weights}"


def pass_records(name: str | None = None) -> list[dict[str, Any]]:
    """Every pass (or one): its contract, options with types and defaults, what it needs and establishes."""
    import ingot.passes.all  # noqa: F401  (registers the passes)
    from ingot.passes.base import PASSES, make_pass, options

    if name is not None and name not in PASSES:
        make_pass(name, {})
    out: list[dict[str, Any]] = []
    for key in sorted(PASSES) if name is None else [name]:
        cls = PASSES[key]
        out.append({"name": key, "contract": cls.contract, "doc": (cls.__doc__ or "").strip(), "needs": list(cls.needs),
                    "establishes": list(cls.establishes), "not_after": dict(cls.not_after),
                    "options": [{"name": option, "type": getattr(kind, "__name__", str(kind)),
                                 "default": None if default is MISSING else default, "doc": doc}
                                for option, kind, default, doc in options(cls)]})
    return out


def pass_table() -> str:
    """All passes and recipes, a line each."""
    from ingot.passes.recipes import RECIPES

    passes = table(("pass", "contract", "what it does"),
                   [(r["name"], r["contract"], _first_line(r["doc"])) for r in pass_records()])
    recipes = "\n".join(f"{name}\n    {what}\n    {text}" for name, (text, what) in RECIPES.items())
    return f"{passes}\n\nRecipes (for decoders; other models get them without the KV cache):\n\n{recipes}"


def describe_pass(name: str) -> str:
    """One pass in full. Raises PassError, listing the passes, for an unknown name."""
    record = pass_records(name)[0]
    lines = [f"{name} ({record['contract']})", "", *("  " + line.strip() for line in record["doc"].splitlines())]
    if record["options"]:
        rows = [(o["name"], o["type"], o["default"], o["doc"]) for o in record["options"]]
        lines += ["", table(("option", "type", "default", ""), rows)]
    lines += [f"refused after {fact}: {reason}" for fact, reason in record["not_after"].items()]
    return "\n".join(lines)


def _first_line(doc: str) -> str:
    return " ".join(doc.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
