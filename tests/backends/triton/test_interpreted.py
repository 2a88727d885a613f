"""The tests in `interpreted`, in processes whose Triton runs kernels on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DECODING = {"test_session.py", "test_paged.py"}
OTHERS = {file.name for file in (HERE / "interpreted").glob("test_*.py")} - DECODING


@pytest.mark.parametrize("names", [DECODING, OTHERS], ids=["decoding", "others"])
def test_interpreted(names: set[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
               *(str(HERE / "interpreted" / name) for name in sorted(names))]
    run = subprocess.run(command, cwd=HERE.parents[2], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
                         text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
