"""Tables for people: receipts, evaluations, statistics, the list of passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingot.changes import Diff, Totals
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
    """One line per pass: sites, ops, parameters, bytes, seconds, peak memory, the error where one was measured; then totals."""
    from ingot.passes.pipeline import Receipt

    if not receipts:
        return "no passes were run"
    first, last = receipts[0], receipts[-1]
    total = Receipt("total", sum(r.sites for r in receipts), any(r.changed for r in receipts), first.ops_before, last.ops_after,
                    first.parameters_before, last.parameters_after, first.bytes_before, last.bytes_after,
                    sum(r.seconds for r in receipts), max(r.memory for r in receipts))
    rows = [(r.stage, r.sites, f"{r.ops_before} -> {r.ops_after}", f"{r.parameters_after / 1e6:.1f} M",
             f"{size(r.bytes_before)} -> {size(r.bytes_after)}", f"{r.seconds:.2f}", size(r.memory), error_text(r.details))
            for r in (*receipts, total)]
    header = ("pass", "sites", "ops", "parameters", "weights", "seconds", "peak memory", "error")
    measured = any(row[-1] for row in rows)
    return table(header if measured else header[:-1], rows if measured else [row[:-1] for row in rows])


def error_text(details: Mapping[str, Any]) -> str:
    """What a lossy pass cost, from the entry `error` of its receipt: a number, or several by name (kl, top1, ...)."""
    error = details.get("error")
    if isinstance(error, Mapping):
        return ", ".join(f"{name} {value:.3g}" for name, value in error.items() if isinstance(value, int | float))
    return f"{error:.3g}" if isinstance(error, int | float) else ""


def diff_text(diff: Diff, *, full: bool = False, paint: Callable[[str, str], str] = lambda text, kind: text) -> str:
    """The changes of a diff, a line each, equal ones of several layers as one unless `full`.

    paint: gives a text the colour of its kind: removed, added, changed, title or times.
    """
    if diff.equal:
        other = "".join(f"\n  {old} is now {new}" for old, new in diff.renamed)
        return paint("no difference", "title") + (f" but in names:{other}" if other else "")
    lines = [paint(f"--- {_totals(diff.before)}", "removed"), paint(f"+++ {_totals(diff.after)}", "added")]
    folds = diff.unfolded() if full else diff.folded()
    for subject in dict.fromkeys(fold.first.subject for fold in folds):
        counts = dict.fromkeys(("removed", "added", "changed"), 0)
        shown: list[str] = []
        for fold in folds:
            if fold.first.subject == subject:
                counts[fold.first.kind] += fold.count
                shown.append(paint(fold.first.line, fold.first.kind) + (fold.times and paint(f"   {fold.times}", "times")))
        counted = ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n)
        lines += ["", paint(f"{TITLES[subject]}: {counted}", "title"), *shown]
    return "\n".join(lines)


TITLES = {"func": "funcs", "op": "ops", "type": "types of results, as they follow", "weight": "weights", "param": "parameters",
          "return": "returns", "dim": "dims", "meta": "facts"}
"""What the kinds of changes in a diff are called."""


def _totals(totals: Totals) -> str:
    return f"{totals.name}: {totals.ops:,} ops, {totals.parameters / 1e6:.1f} M parameters, {size(totals.bytes)}"


def evaluation_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The records of an evaluation: perplexity with its 95 % interval per domain, and the comparison where there is one."""
    rows: list[tuple[object, ...]] = []
    compared = any("kl" in r for r in results.values())
    for name, result in results.items():
        mine = result.get("model", result)
        row: tuple[object, ...] = (name, mine["chunks"], f"{mine['perplexity']:.3f}", _range(mine["interval95"]))
        if compared:
            kl, top1 = result["kl"], result["top1"]
            change = [100 * (math.exp(v) - 1) for v in result["nll_change"]["interval95"] or ()]
            row += (f"{result['reference']['perplexity']:.3f}", f"{100 * (result['perplexity_ratio'] - 1):+.1f} %",
                    _range(change, "+.1f"), f"{kl['mean']:.4f}{_margin(kl, 1, 4)}",
                    f"{100 * top1['mean']:.1f}{_margin(top1, 100, 1)} %")
        rows.append(row)
    header = ("domain", "chunks", "perplexity", "95 %")
    return table(header + (("original", "change", "95 %", "KL (nats)", "top-1 agrees") if compared else ()), rows)


def evaluation_text(record: Mapping[str, Any]) -> str:
    """What was measured when an artifact was compiled."""
    return f"against the original on {record['text']}, {record['tokens']:,} tokens:\n{evaluation_table(record['results'])}"


def _range(interval: Sequence[float] | None, form: str = ".2f") -> str:
    return f"{interval[0]:{form}}..{interval[1]:{form}}" if interval else "?"


def _margin(estimate: Mapping[str, Any], scale: float, digits: int) -> str:
    """Half the 95 % interval of an estimate."""
    interval = estimate["interval95"]
    return f" ± {scale * (interval[1] - interval[0]) / 2:.{digits}f}" if interval else ""


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
