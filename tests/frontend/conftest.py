"""Settings shared by the tests of the frontend."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
