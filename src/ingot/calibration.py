"""Calibration text: from the user's file, or a small sample of several kinds that comes with ingot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ingot.errors import PassError
from ingot.runtime.evaluate import load_chunks
from ingot.runtime.tokenizer import Tokenizer

SAMPLE = """\
The old lighthouse keeper climbed one hundred and ninety-nine steps every evening, rain or shine, and lit the lamp before the \
first boats came home. "You will know the harbour by two red lights," he told the boy, "and by the smell of tar." In 1874 the \
tower was struck by lightning; nobody was hurt, but the clock in the kitchen stopped at a quarter past three and was never \
mended.

def mean(values: list[float]) -> float:
    if not values:
        raise ValueError("mean of nothing")
    return sum(values) / len(values)

Water boils at 100 degrees Celsius at sea level; at 3,000 metres it boils near 90. Why? Because the pressure of the air is \
lower there. To convert: F = C * 9/5 + 32.

| city | population | area (km2) |
| --- | ---: | ---: |
| Lisbon | 545,796 | 100.05 |
| Oslo | 709,037 | 454.12 |

Dear Ms. Okafor, thank you for your letter of 12 March. We regret the delay and will send the missing parts (no. 44-B, 2 pieces) \
by Friday. Kind regards, J. Lindqvist

1. Wash the lentils. 2. Fry an onion in oil until golden. 3. Add cumin, garlic, salt; stir. 4. Pour in a litre of stock and \
simmer for 25 minutes. Serve with lemon.
{"name": "sensor-7", "values": [0.12, -3.5, 18], "ok": true, "note": null}
El tren sale a las ocho y media. Der Zug hat leider Verspätung. Où est la gare, s'il vous plaît?
"""


def calibration_chunks(directory: Path | None, *, text: Path | str | None = None, tokens: int = 32768,
                       context: int = 512) -> list[np.ndarray]:
    """Batches of token ids i64[1, s]: chunks of `context` tokens of `text` (or of the sample), at most `tokens` in all.

    directory: where the tokenizer lies. Domains of an .npz take turns. Raises PassError when there is no tokenizer.
    """
    if text is not None and str(text).endswith(".npz"):
        domains = list(load_chunks(text, context=context).values())
        chunks = [d[i] for i in range(max(map(len, domains))) for d in domains if i < len(d)]
    else:
        if directory is None or not (directory / "tokenizer.json").exists():
            raise PassError("calibration text needs the model's tokenizer, and there is no tokenizer.json",
                            hint="give token ids instead: --calib chunks.npz")
        tokenizer = Tokenizer.open(directory)
        if text is not None:
            chunks = [row for rows in load_chunks(text, tokenizer=tokenizer, context=context).values() for row in rows]
        else:
            chunks = [np.asarray(tokenizer.encode(SAMPLE), np.int64)[:context]]
    return [c[None] for c in chunks[: max(1, tokens // context)]]
