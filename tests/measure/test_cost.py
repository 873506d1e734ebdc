"""Counted operations are those that one can count by hand."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional

from mbrl.cli.compose import compose
from mbrl.cli.train import fitted_to_model
from mbrl.measure.cost import Cost, cost_of, counted
from mbrl.run.assemble import Configs
from worldmodel.rollout.fused import multiplies_bytes, pack, product


def cost(*words: str) -> Cost:
    line = ["experiment=toy", *words]
    plain: Any = fitted_to_model(OmegaConf.to_container(compose("train", line)), line, trusted=True)
    return cost_of(Configs.of(plain, trusted=True).groups)


def test_products_convolutions_attention_and_packed_matrices_are_counted() -> None:
    x, linear, conv = torch.randn(5, 8, requires_grad=True), nn.Linear(8, 6), nn.Conv2d(3, 4, 3)
    forward = 2 * 5 * 8 * 6
    assert counted(lambda: linear(x)) == forward
    assert counted(lambda: linear(x).sum().backward()) == 3 * forward
    assert counted(lambda: conv(torch.zeros(2, 3, 9, 9))) == 2 * (2 * 4 * 7 * 7) * (3 * 3 * 3)
    query, key = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4)
    assert counted(lambda: functional.scaled_dot_product_attention(query, key, key)) == 2 * 2 * (2 * 5 * 7 * 4)
    with torch.no_grad():
        for dtype in (torch.float32, *[torch.qint8] * multiplies_bytes("cpu")):
            packed = pack(linear.weight, dtype)
            assert counted(functools.partial(product, x.detach(), packed)) == forward


def test_an_update_costs_what_its_batch_costs_and_a_deeper_transformer_one_block_more() -> None:
    one, two = cost("fit.dynamics.batch=4"), cost("fit.dynamics.batch=8")
    assert two.update["dynamics"] == 2 * one.update["dynamics"] and two.update["tokenizer"] == one.update["tokenizer"]
    assert (two.frame, two.prefill, two.parameters) == (one.frame, one.prefill, one.parameters)
    layers = [cost(f"transformer.layers={layers}") for layers in (1, 2, 3)]
    grown = [after.frame - before.frame for before, after in itertools.pairwise(layers)]
    assert grown[0] == grown[1] > 0
    block = layers[1].parameters["dynamics"] - layers[0].parameters["dynamics"]
    assert grown[0] > 2 * block, "each weight of a block is used in a product, once for each token of a frame or more"
    assert layers[0].vocabulary == layers[2].vocabulary > 0


@pytest.mark.parametrize(
    "words", [["worldmodel.proprio=true"], ["worldmodel=oracle"], ["worldmodel=none", "agent=random"]]
)
def test_any_world_model_has_a_cost(words: list[str]) -> None:
    found = cost(*words)
    if words[0] == "worldmodel.proprio=true":
        assert found.parameters["dynamics"] > cost().parameters["dynamics"] and found.frame > 0
    else:
        assert (found.parameters, found.update, found.frame) == ({}, {}, 0.0)
