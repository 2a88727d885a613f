"""Compare artifacts side by side: size, decode speed, and perplexity on a text.

    python examples/compare_artifacts.py BEFORE AFTER --text FILE
"""

import click

import ingot
from ingot.report import size, table
from ingot.runtime.manifest import Manifest


@click.command()
@click.argument("artifacts", nargs=-1, required=True)
@click.option("--text", required=True, help="A text file to measure perplexity on.")
@click.option("--new-tokens", default=64, show_default=True)
def main(artifacts: tuple[str, ...], text: str, new_tokens: int) -> None:
    rows = []
    for artifact in artifacts:
        speed = ingot.bench(artifact, prompt_tokens=128, new_tokens=new_tokens)
        perplexity = ingot.evaluate(artifact, text)["all"].perplexity
        rows.append((artifact.rstrip("/").rsplit("/", 1)[-1], size(sum(Manifest.load(artifact).files.values())),
                     f"{speed.prefill_per_second:.0f}", f"{speed.decode_per_second:.0f}", f"{perplexity:.2f}"))
    click.echo(table(("artifact", "size", "prefill tokens/s", "decode tokens/s", "perplexity"), rows))


if __name__ == "__main__":
    main()
