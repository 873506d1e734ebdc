"""Attention's products are those of small matrices, forward and backward, and nothing else's are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.attention import MATMUL, SMALL, attend, small_products


@pytest.fixture(autouse=True)
def large() -> Iterator[None]:
    """Large products go through oneDNN, as in the CPU preset."""
    held = MATMUL.fp32_precision
    MATMUL.fp32_precision = "bf16"
    yield
    MATMUL.fp32_precision = held


def drawn(number: int, *, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator).requires_grad_(grad)


@pytest.mark.parametrize("how", ["all", "causal", "mask", "scale"])
def test_values_and_gradients_are_those_of_torch(how: str) -> None:
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if how == "mask" else None
    scale = 0.3 if how == "scale" else None
    ours, theirs = ([drawn(number) for number in range(3)] for _ in range(2))
    found = attend(*ours, mask=mask, is_causal=how == "causal", scale=scale)
    wanted = F.scaled_dot_product_attention(*theirs, attn_mask=mask, is_causal=how == "causal", scale=scale)
    assert torch.equal(found, wanted)
    for result in (found, wanted):
        result.square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))  # type: ignore[arg-type]


def test_the_setting_is_that_of_small_products_in_both_passes_and_as_before_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, str] = {}
    real = F.scaled_dot_product_attention

    def watched(*args: Tensor, **kwargs: object) -> Tensor:
        seen["forward"] = MATMUL.fp32_precision
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    query = drawn(0)
    mixed = attend(query * 2, drawn(1), drawn(2))
    assert MATMUL.fp32_precision == "bf16"
    node = mixed.grad_fn
    assert node is not None
    node.register_prehook(lambda _: seen.update(backward=MATMUL.fp32_precision))
    query.register_hook(lambda _: seen.update(behind=MATMUL.fp32_precision))
    mixed.sum().backward()
    assert seen == {"forward": SMALL, "backward": SMALL, "behind": "bf16"} and MATMUL.fp32_precision == "bf16"


def test_the_setting_comes_back_after_an_error_and_stays_for_other_devices() -> None:
    with pytest.raises(RuntimeError):
        attend(drawn(0), drawn(1)[..., :2], drawn(2))
    assert MATMUL.fp32_precision == "bf16"
    with small_products(torch.device("meta")):
        assert MATMUL.fp32_precision == "bf16"
    with small_products(torch.device("cpu")):
        assert MATMUL.fp32_precision == SMALL
