"""A world model without codes: a small convolutional recurrent one, real enough to be fitted, dreamt in and resumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.microbatch import MicroBatch, normal
from worldmodel.seeds import Seeds, seeded_globally
from worldmodel.spec import ContextMode, EnvSpec, ModelSpec, ObsKey, Part


@dataclass(frozen=True, kw_only=True)
class ConvModelConfig:
    """Attributes:
    width: of the recurrent state, which an agent reads.
    noise: deviation of what a sampled frame adds to the expected embedding.
    """

    burn_in: int
    max_frames: int
    width: int
    noise: float
    context: ClassVar[ContextMode] = "first_frame"
    obs_keys: ClassVar[tuple[ObsKey, ...]] = ("pixels",)
    parts: ClassVar[tuple[Part, ...]] = ("dynamics",)

    def build(self, *, env_spec: EnvSpec, seeds: Seeds) -> ConvModel:
        with seeded_globally(seeds.torch("init/worldmodel")):
            return ConvModel(self, env_spec)


class ConvModel(nn.Module):
    """State: `wm.frame` i64 [B, 1] and the latent f32 [B, W], which is the recurrent state.

    A frame is embedded, a GRU takes it in with its action; in a dream the embedding is the expected one, disturbed
    where it is sampled.
    """

    def __init__(self, config: ConvModelConfig, env_spec: EnvSpec) -> None:
        super().__init__()
        width, actions, side = config.width, env_spec.action_dim, env_spec.image // 4
        self.embed = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1), nn.SiLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.Flatten(), nn.Linear(16 * side**2, width)
        )
        self.begin = nn.Linear(width, width)
        self.cell = nn.GRUCell(width + actions, width)
        self.expect = nn.Sequential(nn.Linear(width + actions, width), nn.SiLU(), nn.Linear(width, width))
        self.reward = nn.Linear(width, 1)
        self.picture = nn.Sequential(
            nn.Linear(width, 16 * side**2),
            nn.Unflatten(1, (16, side, side)),
            nn.ConvTranspose2d(16, 8, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
        )
        self.noise, self.version = config.noise, 0
        self.spec = ModelSpec(
            image=env_spec.image,
            context_frames=1,
            action_dim=actions,
            max_frames=config.max_frames,
            context=config.context,
            burn_in=config.burn_in,
            obs_keys=config.obs_keys,
            latent={"hidden": width},
            state={
                ("wm", "frame"): ((1,), torch.int64),
                "latent": ((width,), torch.float32),
                "reward": ((1,), torch.float32),
                "continue": ((1,), torch.float32),
            },
            parts=config.parts,
        )

    def _seen(self, frames_BCHW: Tensor) -> Tensor:
        return self.embed(frames_BCHW.float() / 255 - 0.5)

    def _begun(self, context_BtCHW: Tensor) -> Tensor:
        return self.begin(self._seen(context_BtCHW[:, -1])).tanh()

    def _taken_in(self, hidden_BW: Tensor, frame_BW: Tensor, action_BA: Tensor) -> Tensor:
        return self.cell(torch.cat([frame_BW, action_BA], 1), hidden_BW)

    def _expected(self, hidden_BW: Tensor, action_BA: Tensor) -> Tensor:
        return self.expect(torch.cat([hidden_BW, action_BA], 1))

    def _state(self, hidden_BW: Tensor, frame: int) -> TensorDict:
        rows = len(hidden_BW)
        known = {"reward": self.reward(hidden_BW), "continue": torch.ones(rows, 1)}
        return TensorDict({"wm": {"frame": torch.full((rows, 1), frame)}, "latent": hidden_BW, **known}, [rows])

    @torch.no_grad()
    def encode(self, clip: TensorDict) -> TensorDict:
        hidden_BW, frames = self._begun(clip["context"]), clip["pixels"].shape[1]
        for frame in range(frames):
            hidden_BW = self._taken_in(hidden_BW, self._seen(clip["pixels"][:, frame]), clip["action"][:, frame])
        return self._state(hidden_BW, frames)

    @torch.no_grad()
    def imagine(self, state: TensorDict, action_BA: Tensor, generator: torch.Generator | None) -> TensorDict:
        frame_BW = self._expected(state["latent"], action_BA)
        if generator is not None:
            frame_BW = frame_BW + self.noise * torch.randn(frame_BW.shape, generator=generator)
        return self._state(self._taken_in(state["latent"], frame_BW, action_BA), self.depth(state) + 1)

    @torch.no_grad()
    def observe(self, state: TensorDict, action_BA: Tensor, step: TensorDict) -> TensorDict:
        seen_BW = self._seen(step["pixels"])
        return self._state(self._taken_in(state["latent"], seen_BW, action_BA), self.depth(state) + 1)

    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        return state.repeat_interleave(copies, 0)

    def depth(self, state: TensorDict) -> int:
        return int(state["wm", "frame"][0, 0])

    @torch.no_grad()
    def decode(self, state: TensorDict) -> Tensor:
        return ((self.picture(state["latent"]) + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    def prepare(self, part: Part) -> None:
        """Nothing is needed."""

    def losses(
        self, clip: TensorDict, part: Part, *, step: int, generator: torch.Generator, micro: MicroBatch | None = None
    ) -> dict[str, Tensor]:
        source = generator if micro is None else micro.noise(generator)
        pixels_BTCHW, action_BTA = clip["pixels"], clip["action"]
        seen_BTW = self._seen(pixels_BTCHW.flatten(0, 1)).unflatten(0, pixels_BTCHW.shape[:2])
        hidden_BW, states, surprises = self._begun(clip["context"]), [], []
        for frame, action_BA in enumerate(action_BTA.unbind(1)):
            surprises.append((self._expected(hidden_BW, action_BA) - seen_BTW[:, frame].detach()).square().mean())
            noisy_BW = seen_BTW[:, frame] + self.noise * normal(hidden_BW.shape, source, device=hidden_BW.device)
            hidden_BW = self._taken_in(hidden_BW, noisy_BW, action_BA)
            states.append(hidden_BW)
        hidden_NW = torch.stack(states, 1).flatten(0, 1)
        drawn = self.picture(hidden_NW) + 0.5
        losses = {
            "frame": functional.mse_loss(drawn, pixels_BTCHW.flatten(0, 1).float() / 255),
            "reward": functional.mse_loss(self.reward(hidden_NW)[:, 0], clip["reward"].flatten()),
            "surprise": torch.stack(surprises[1:]).mean(),  # nothing is known before the first frame
        }
        scalars: dict[str, Any] = {f"{part}/{name}": value.detach() for name, value in losses.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **scalars}

    def parameters_of(self, part: Part) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters()) if part == "dynamics" else {}

    def updated(self, part: Part) -> None:
        self.version += 1
