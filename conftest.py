"""Lets a bare `pytest` find `ingot` in a checkout: the package lies in src/ingot and in the top-level folders."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parent
if importlib.util.find_spec("ingot") is None:
    spec = importlib.util.spec_from_file_location("ingot", ROOT / "src/ingot/__init__.py",
                                                  submodule_search_locations=[str(ROOT / "src/ingot"), str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["ingot"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ingot"])
