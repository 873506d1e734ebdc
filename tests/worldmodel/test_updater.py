"""Updates of a world model's parts: what frozen codebooks keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from mbrl.cli.compose import compose
from mbrl.rundir.build import make
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.processes import Processes
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec

A, SIDE = 2, 32
VQ = ("tokenizer.quantizer=vq", "tokenizer.fsq_levels_context=[]", "tokenizer.fsq_levels_future=[]")
VQ += ("tokenizer.fsq_place_means=false", "worldmodel.embedding=table")


class Noise:
    """Clips of frames that nobody has seen before."""

    def clips(self, n: int, length: int, *, stream: str, draw: int) -> TensorDict:
        generator = Seeds(5).torch(stream, draw)
        frames = torch.randint(256, (n, length + 1, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        parts = {
            "context": frames[:, :1],
            "pixels": frames[:, 1:],
            "action": torch.rand(n, length, A, generator=generator) * 2 - 1,
            "reward": torch.rand(n, length, generator=generator),
            "continue": torch.ones(n, length),
            "first": torch.zeros(n, length, dtype=torch.bool),
            "reward_mask": torch.ones(n, length, dtype=torch.bool),
        }
        return TensorDict(parts, batch_size=[n])


@pytest.mark.parametrize("words", [(), VQ], ids=["fsq", "vq"])
@pytest.mark.parametrize("codebooks", ["frozen", "trained"])
def test_frozen_codebooks_keep_the_meaning_of_codes(words: tuple[str, ...], codebooks: str) -> None:
    plain: Any = OmegaConf.to_container(
        compose("train", ["experiment=toy", f"fit.tokenizer.codebooks={codebooks}", *words])
    )
    parts = {name: make(plain[name], name, trusted=True) for name in ("worldmodel", "tokenizer", "transformer", "fit")}
    env = EnvSpec(image=SIDE, action_dim=A, discrete=False, action_repeat=1, decisions=9, terminates=False)
    model: IVideoGPT = parts["worldmodel"].build(
        tokenizer=parts["tokenizer"], transformer=parts["transformer"], env_spec=env, seeds=Seeds(3)
    )
    books = (model.tokenizer.quantize, model.tokenizer.dynamics_quantize)
    latents = [torch.randn(64, book.vectors(torch.zeros(1, dtype=torch.int64)).shape[-1]) for book in books]
    before = [
        (book.codes(latent), {n: t.clone() for n, t in book.state_dict().items()})
        for book, latent in zip(books, latents, strict=True)
    ]
    sources = dict.fromkeys(("tokenizer", "dynamics"), Noise())
    alone = Processes(rank=0, world=1, device=torch.device("cpu"))
    updater = parts["fit"].build(model=model, seeds=Seeds(0), processes=alone, sources=sources)
    for number in range(3):
        updater.update("tokenizer", number)
        model.tokenize(*(Noise().clips(2, 3, stream="x", draw=0)[key] for key in ("context", "pixels")))
    kept = [
        torch.equal(book.codes(latent), codes) and all(torch.equal(book.state_dict()[n], t) for n, t in state.items())
        for book, latent, (codes, state) in zip(books, latents, before, strict=True)
    ]
    assert kept == [codebooks == "frozen"] * 2
