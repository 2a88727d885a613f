"""The command line: a thin shell over the Python functions. Heavy imports happen inside the verbs."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from ingot.errors import IngotError


class _Group(click.Group):
    """Shows an ingot error as one screen and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        warnings.showwarning = _show_warning
        try:
            return super().invoke(ctx)
        except IngotError as error:
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(error), err=True)
            sys.exit(1)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            if error.filename is None:
                raise
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(f"{error.filename}: {error.strerror}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was replaced", err=True)
            sys.exit(130)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.secho("warning: ", fg="yellow", nl=False, err=True)
    click.echo(str(message), err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ingot", prog_name="ingot")
def main() -> None:
    """Compile trained models into smaller, faster ones, and see what every step did."""


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON record on stdout.")
check = click.option("--check", is_flag=True, help="Check after every pass that it kept its contract.")
repro = click.option("--repro", type=click.Path(path_type=Path), default="ingot-repro", show_default=True,
                     help="Where --check writes down a broken contract.")
plugins = click.option("--plugin", "plugin", multiple=True, metavar="MODULE",
                       help="A module or .py file that defines passes; may be given several times.")
adapter = click.option("--adapter", multiple=True, metavar="DIR",
                       help="A LoRA adapter (PEFT directory) to merge first; may be given several times.")
threads = click.option("--threads", type=click.IntRange(1), help="Threads within one operator [default: one per core].")


@main.command("compile")
@click.argument("model")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The artifact directory to write.")
@click.option("--target", type=click.Choice(["ort", "triton"]), default="ort", show_default=True)
@click.option("--recipe", help="A named pipeline; see `ingot passes` [default: fp32].")
@click.option("--passes", help="A pipeline instead of a recipe: name,name{option=value ...},...")
@adapter
@click.option("--calib", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Calibration text (.txt, .jsonl) or token chunks (.npz); several take turns [default: a sample].")
@click.option("--calib-tokens", type=click.IntRange(2), default=32768, show_default=True, help="Tokens of it to use.")
@click.option("--calib-context", type=click.IntRange(2), default=512, show_default=True, help="Tokens of a sequence of it.")
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Text to measure on what lossy passes cost, as --calib; other text than that [default: a sample].")
@click.option("--no-eval", is_flag=True, help="Do not measure it.")
@click.option("--force", is_flag=True, help="Replace an existing artifact.")
@click.option("--dump", type=click.Path(path_type=Path), help="Also write the text of every stage here.")
@click.option("--opset-only", is_flag=True, help="Standard ONNX operators alone.")
@click.option("--dtype", type=click.Choice(["f32", "bf16", "f16"]), help="Floats of the graph [default: f32; bf16 for triton].")
@click.option("--arch", metavar="SM,...", help="For triton: architectures to compile kernels for now, as sm_90,sm_100.")
@check
@repro
@plugins
@as_json
def compile_(model: str, out: Path, target: str, recipe: str | None, passes: str | None, adapter: tuple[str, ...],
             calib: tuple[Path, ...], calib_tokens: int, calib_context: int, evaluation: tuple[Path, ...], no_eval: bool,
             force: bool, dump: Path | None, opset_only: bool, dtype: str | None, arch: str | None, check: bool, repro: Path,
             plugin: tuple[str, ...], as_json: bool) -> None:
    """Compile MODEL (a checkpoint directory, a .gguf file, an .ir file, package.module:callable).

    Killed while it calibrates, the same command goes on where it was.
    """
    from ingot.compiler import compile as run
    from ingot.progress import progress_bar
    from ingot.report import evaluation_text

    _load(plugin)
    with progress_bar("compile") as step:
        made = run(model, out, target=target, recipe=recipe, passes=passes, adapter=adapter, calib=calib or None,
                   calib_tokens=calib_tokens, calib_context=calib_context, evaluation=not no_eval and (evaluation or True),
                   force=force, dump=dump, opset_only=opset_only, dtype=dtype, check=check, repro=repro, progress=step,
                   archs=arch.split(",") if arch else ())
    if as_json:
        click.echo(json.dumps(made.to_json()))
    else:
        total = sum(made.manifest.files.values())
        if made.evaluation is not None:
            click.echo(evaluation_text(made.evaluation), err=True)
        click.echo(f"{out}: {total / 1e6:.1f} MB, {made.seconds:.1f} s, peak memory {made.peak_bytes / 1e9:.2f} GB", err=True)


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--max-new-tokens", type=click.IntRange(1))
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0))
@click.option("--top-p", type=click.FloatRange(0, 1))
@click.option("--min-p", type=click.FloatRange(0, 1))
@click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True))
@click.option("--seed", type=int)
@click.option("--stop", multiple=True, help="A string that ends the text; may be given several times.")
@click.option("--chat/--raw", default=None, help="Use the chat template, or continue the text [default: chat if there is one].")
@click.option("--system", help="The system message of the chat.")
@click.option("--adapter", metavar="NAME", help="One of the adapters that the artifact holds (see the pass lora-inputs).")
@threads
@as_json
def generate(artifact: Path, prompt: str, chat: bool | None, system: str | None, adapter: str | None, threads: int | None,
             as_json: bool, **options: Any) -> None:
    """Continue PROMPT (- reads it from standard input), streaming the text to stdout."""
    from ingot.running import has_chat_template, stream

    text = sys.stdin.read() if prompt == "-" else prompt
    if chat is None:
        chat = has_chat_template(artifact)
    messages = [{"role": "system", "content": system}] if system else []
    request: Any = [*messages, {"role": "user", "content": text}] if chat else text
    options["stop"] = options["stop"] or None
    options["adapters"] = (adapter,) if adapter else None
    generation = stream(artifact, [request], threads=threads, **options)
    for piece in generation:
        if not as_json:
            click.echo(piece.text, nl=False)
    result, timings = generation.results[0], generation.timings
    if as_json:
        click.echo(json.dumps({"text": result.text, "ids": list(result.ids), "finish_reason": result.finish_reason,
                               "prompt_tokens": result.prompt_tokens, "prefill_tokens_per_second": timings.prefill_per_second,
                               "decode_tokens_per_second": timings.decode_per_second}))
        return
    click.echo()
    if sys.stderr.isatty():
        click.secho(f"[{result.prompt_tokens} prompt tokens, {timings.prefill_per_second:.0f}/s; {len(result.ids)} new, "
                    f"{timings.decode_per_second:.0f}/s; {result.finish_reason}]", dim=True, err=True)


@main.command("eval")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), required=True, multiple=True, metavar="FILE",
              help="A text file (.txt, .jsonl), or an .npz of token chunks by domain; several are domains of their own.")
@click.option("--against", "--reference", "against", metavar="MODEL",
              help="A model or artifact to compare with: KL divergence and top-1 agreement.")
@click.option("--context", type=click.IntRange(2), default=1024, show_default=True, help="Tokens per chunk.")
@click.option("--chunks", type=click.IntRange(1), help="Use only so many chunks of each domain.")
@threads
@as_json
def eval_(artifact: Path, text: tuple[Path, ...], against: str | None, context: int, chunks: int | None, threads: int | None,
          as_json: bool) -> None:
    """Perplexity of ARTIFACT on text, with 95 % confidence intervals (Student's t over chunks)."""
    from ingot.progress import progress_bar
    from ingot.report import evaluation_table
    from ingot.running import evaluate

    with progress_bar("eval") as step:
        results = evaluate(artifact, text, against=against, context=context, chunks=chunks, threads=threads, progress=step)
    records = {name: result.to_json() for name, result in results.items()}
    click.echo(json.dumps(records) if as_json else evaluation_table(records))


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--new-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--past", type=click.IntRange(1), help="Tokens in the cache when decoding starts [default: the prompt].")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--tune", is_flag=True, help="For triton: first measure settings of kernels, and keep the best in the artifact.")
@threads
@as_json
def bench(artifact: Path, as_json: bool, threads: int | None, **options: Any) -> None:
    """Prefill and decode speed of ARTIFACT: medians over the repeats."""
    from ingot.running import bench as run

    result = run(artifact, threads=threads, **options)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        click.echo(f"prefill {result.prefill_per_second:8.1f} tokens/s  ({result.prompt_tokens} tokens, batch {result.batch})\n"
                   f"decode  {result.decode_per_second:8.1f} tokens/s  ({result.new_tokens} tokens after {result.past})\n"
                   f"memory  {result.peak_rss_bytes / 1e6:8.1f} MB peak, {result.cache_bytes / 1e6:.1f} MB of it KV cache")


@main.command("import")
@click.argument("model")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="The .ir file [default: stdout].")
@click.option("--dtype", type=click.Choice(["f32", "bf16", "f16"]), default="f32", show_default=True)
@click.option("--no-weights", is_flag=True, help="Import the configuration alone; no weight files are needed.")
def import_(model: str, out: Path | None, dtype: str, no_weights: bool) -> None:
    """Trace MODEL into the graph IR and write its text."""
    from ingot.compiler import load
    from ingot.ir.text import print_module

    _write(print_module(load(model, dtype=dtype, weights=not no_weights)), out)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--passes", required=True, help="Pipeline text: name,name{option=value ...},...")
@adapter
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="[default: stdout]")
@click.option("--receipts", is_flag=True, help="A table of what every pass did, on stderr.")
@check
@repro
@plugins
def opt(file: Path, passes: str, adapter: tuple[str, ...], out: Path | None, receipts: bool, check: bool, repro: Path,
        plugin: tuple[str, ...]) -> None:
    """Apply passes to the text of a module (- reads standard input).

    With --check, weights whose numbers are not in the text get random ones.
    """
    from ingot.compiler import optimize, with_adapters
    from ingot.dumps import read_dump
    from ingot.ir.module import Module
    from ingot.ir.text import print_module
    from ingot.passes.pipeline import check_order, parse_pipeline
    from ingot.report import receipt_table

    _load(plugin)
    pipeline = with_adapters(parse_pipeline(passes), adapter)
    check_order(pipeline, Module(), has_calibration=True)
    module = read_dump(file)
    done = optimize(module, pipeline, check=check, repro=repro)
    _write(print_module(module), out)
    if receipts:
        click.echo(receipt_table(done), err=True)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--after", help="The stage of an artifact after this pass (import for the traced graph).")
@click.option("--stats", is_flag=True, help="Counts instead of text.")
@click.option("--receipts", is_flag=True, help="What every pass of an artifact did.")
@click.option("--html", type=click.Path(path_type=Path), help="Write all stages as one page: graph, text, changes, plots.")
@as_json
def show(path: Path, after: str | None, stats: bool, receipts: bool, html: Path | None, as_json: bool) -> None:
    """Read the dump of an artifact or of an .ir file."""
    from ingot.dumps import dump_text, read_receipts, statistics
    from ingot.fidelity import read_evaluation
    from ingot.report import evaluation_text, receipt_table, statistics_table

    if html is not None:
        from ingot.html.page import write_page

        if after or stats or receipts or as_json:
            raise click.UsageError("--html shows all stages with their receipts; leave --after, --stats, --receipts, --json out")
        click.echo(f"{html}: {write_page(path, html) / 1e6:.2f} MB", err=True)
    elif receipts:
        found, record = read_receipts(path), read_evaluation(path)
        click.echo(json.dumps([r.to_json() for r in found]) if as_json else receipt_table(found))
        if not as_json and record is not None:
            click.echo(f"\n{evaluation_text(record)}")
    elif stats:
        counted = statistics(path, after=after)
        click.echo(json.dumps(counted) if as_json else statistics_table(counted))
    else:
        click.echo(dump_text(path, after=after), nl=False)


@main.command()
@click.argument("before")
@click.argument("after", required=False)
@click.option("--after", "stage", help="Compare both artifacts as they were after this pass.")
@click.option("--from", "from_", help="The earlier stage of one artifact: a pass (its last run), or as 09-dce "
              "[default: import].")
@click.option("--to", help="The later stage of it [default: its end].")
@click.option("--full", is_flag=True, help="Every change of every layer, not one line for equal ones.")
@click.option("--color/--no-color", default=None, help="[default: colours on a terminal]")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when there are differences.")
@as_json
def diff(before: str, after: str | None, stage: str | None, from_: str | None, to: str | None, full: bool, color: bool | None,
         exit_code: bool, as_json: bool) -> None:
    """What changed from BEFORE to AFTER: dumps, artifacts, ARTIFACT@STAGE, or two stages of one artifact.

    Values are matched by how they are connected, not by their names. Numbers of weights are not in dumps.
    """
    from ingot.changes import diff as run
    from ingot.report import diff_text

    if (after is None) == (from_ is None and to is None) or (stage is not None and after is None):
        raise click.UsageError("give two things to compare, or one artifact with --from STAGE and --to STAGE")
    if after is None:
        before, after = f"{before}@{from_ or 'import'}", f"{before}@{to}" if to else before
    elif stage is not None:
        before, after = f"{before}@{stage}", f"{after}@{stage}"
    found = run(before, after)
    styles: dict[str, dict[str, Any]] = {"removed": {"fg": "red"}, "added": {"fg": "green"}, "changed": {"fg": "yellow"},
                                         "title": {"bold": True}, "times": {"fg": "cyan"}}
    click.echo(json.dumps(found.to_json()) if as_json else
               diff_text(found, full=full, paint=lambda text, kind: click.style(text, **styles[kind])), color=color)
    if exit_code and not found.equal:
        sys.exit(1)


@main.command()
@click.argument("model")
@click.option("--passes", help="The pipeline to search; not for a repro.")
@click.option("--metric", type=click.Choice(["relative", "max-abs", "kl", "top1"]), default="relative", show_default=True,
              help="How the outputs are compared with those of the traced model.")
@click.option("--limit", type=float, help="The greatest error (for top1 the least share) that is right [default: 0.001; 0.99].")
@click.option("--calib", type=click.Path(path_type=Path), help="Text or token chunks (.npz) to compare on [default: a sample].")
@plugins
@as_json
def bisect(model: str, passes: str | None, metric: str, limit: float | None, calib: Path | None, plugin: tuple[str, ...],
           as_json: bool) -> None:
    """Find the first pass, and the first value in it, that makes MODEL wrong; or replay a repro of --check.

    Exits with 1 when a repro is still wrong.
    """
    from ingot.bisection import bisect as run
    from ingot.bisection import replay
    from ingot.passes.contracts.repro import is_repro
    from ingot.progress import progress_bar

    _load(plugin)
    if is_repro(Path(model)):
        done = replay(model)
        click.echo(json.dumps(done.to_json()) if as_json else str(done))
        sys.exit(1 if done.wrong else 0)
    if passes is None:
        raise click.UsageError("give the pipeline to search with --passes, or the directory of a repro")
    with progress_bar("bisect") as step:
        found = run(model, passes, metric=metric, limit=limit, calib=calib, progress=step)
    click.echo(json.dumps(found.to_json()) if as_json else str(found))


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--pass", "passes", required=True, help="The pass, with its options; or a pipeline that ends in it.")
@click.option("--after", help="The stage of an artifact to look at [default: what its own run of the pass began with].")
@plugins
@as_json
def explain(path: Path, passes: str, after: str | None, plugin: tuple[str, ...], as_json: bool) -> None:
    """Why a pass did or did not apply to a dump (an .ir file, - for standard input, an artifact): its near misses."""
    from ingot.explanation import explain as run

    _load(plugin)
    found = run(path, passes, after=after)
    click.echo(json.dumps(found.to_json()) if as_json else str(found))


@main.command()
@click.argument("name", required=False)
@plugins
@as_json
def passes(name: str | None, plugin: tuple[str, ...], as_json: bool) -> None:
    """List passes and recipes, or describe one pass: its options and its contract."""
    from ingot.passes.plugins import load_plugins
    from ingot.report import describe_pass, pass_records, pass_table

    load_plugins(plugin)
    if as_json:
        click.echo(json.dumps(pass_records(name)))
    else:
        click.echo(describe_pass(name) if name else pass_table())


@main.command()
@click.argument("source", metavar="SOURCE")
@click.option("--format", "format_", type=click.Choice(["onnx", "hf"]), required=True)
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The directory to write.")
@click.option("--force", is_flag=True, help="Replace an existing directory.")
@click.option("--passes", help="hf: the pipeline to run first: name,name{option=value ...},...")
@adapter
@click.option("--calib", type=click.Path(path_type=Path), help="hf: calibration text or token chunks (.npz) "
              "[default: a sample].")
@click.option("--layout", type=click.Choice(["compressed-tensors", "gptq", "gptq-v2", "awq"]), help="hf: how quantised weights "
              "are stored [default: compressed-tensors].")
@click.option("--dtype", type=click.Choice(["f32", "bf16", "f16"]), help="hf: of the floats [default: as in SOURCE].")
@plugins
@as_json
def export(source: str, format_: str, out: Path, force: bool, passes: str | None, adapter: tuple[str, ...], calib: Path | None,
           layout: str | None, dtype: str | None, plugin: tuple[str, ...], as_json: bool) -> None:
    """Write SOURCE in a format other tools read.

    onnx: the graph and weights of an artifact. hf: a model (checkpoint directory, .gguf file) after passes, as a checkpoint
    that transformers, vLLM and others load.
    """
    options: dict[str, Any] = {"passes": passes, "adapter": adapter or None, "calib": calib, "layout": layout, "dtype": dtype}
    given = {name: value for name, value in options.items() if value is not None}
    if format_ == "onnx":
        from ingot.compiler import export as run

        if given or plugin or as_json:
            raise click.UsageError("an artifact is exported as it is; passes, layouts and types are for --format hf")
        run(source, out, format=format_, force=force)
        return
    from ingot.exporting import export_checkpoint
    from ingot.progress import progress_bar

    _load(plugin)
    with progress_bar("export") as step:
        made = export_checkpoint(source, out, force=force, progress=step, **given)
    click.echo(json.dumps(made.to_json()) if as_json else
               f"{out}: {made.bytes / 1e6:.1f} MB, {made.quantised} weights quantised; read back, its outputs differ by "
               f"{made.difference:.1g}", err=not as_json)


def _load(plugin: tuple[str, ...]) -> None:
    """Register the passes of plugins. Installed ones are found without, once a pipeline names one."""
    if plugin:
        from ingot.passes.plugins import load_plugins

        load_plugins(plugin)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    from ingot.dumps import write_text

    write_text(out, text)
