"""What every test may ask for."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """A run in this process talks to a screen that is gone after its test, and chooses how matrices are multiplied."""
    precision = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = precision
    for handler in list(logging.getLogger("mbrl").handlers):
        logging.getLogger("mbrl").removeHandler(handler)
        handler.close()
