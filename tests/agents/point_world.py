"""An exact little world for the agent's tests: a point on a square that is to be driven to a goal.

Position and goal are drawn as the brightness of four rows of pixels, so a frame, a code and a latent show one state.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from tensordict import TensorDict
from torch import Tensor

from agents.distributions import LearnedStdConfig, ScheduledStdConfig
from agents.dreamer import Dreamer, DreamerConfig
from agents.returns import PercentileNormConfig, StdNormConfig
from worldmodel.optim import OptimConfig
from worldmodel.seeds import Seeds
from worldmodel.spec import CodeSpec, ContextMode, EnvSpec, ModelSpec, Rollout, Subset

CONFIGS = Path(__file__).parents[2] / "configs" / "agent"
CLASSES = {
    f"{kind.__module__}.{kind.__name__}": kind
    for kind in (
        DreamerConfig,
        LearnedStdConfig,
        ScheduledStdConfig,
        PercentileNormConfig,
        StdNormConfig,
        OptimConfig,
    )
}
IMAGE = 4
SPEED = 0.3  # of the square's half side, per decision


def preset(name: str, **changes: Any) -> DreamerConfig:
    """configs/agent/<name>.yaml with changes."""

    def made(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        kind = CLASSES[node.pop("_target_")]
        return kind(**{key: made(value) for key, value in node.items()})

    return replace(made(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())), **changes)


def spec(
    *, context: ContextMode = "first_frame", context_frames: int = 2, burn_in: int = 2, action_dim: int = 2
) -> ModelSpec:
    return ModelSpec(
        image=IMAGE,
        context_frames=context_frames,
        action_dim=action_dim,
        latent={"point": 6},
        max_frames=20,
        context=context,
        burn_in=burn_in,
        codes=CodeSpec(context=3, future=4, vocab_context=1, vocab_future=1),
    )


def env_spec(*, discrete: bool = False) -> EnvSpec:
    actions = 4 if discrete else 2
    return EnvSpec(image=IMAGE, action_dim=actions, discrete=discrete, action_repeat=1, decisions=10, terminates=False)


def draw(state_B4: Tensor) -> Tensor:
    """State (x, y, goal x, goal y) in [-1, 1] -> u8 [B, 3, 4, 4]: one row of pixels for each number."""
    bytes_B4 = ((state_B4 + 1) * 127.5).round().to(torch.uint8)
    return bytes_B4[:, None, :, None].expand(-1, 3, -1, IMAGE).contiguous()


def read(frame: Tensor) -> Tensor:
    """Inverse of `draw`; u8 [..., 3, 4, 4] -> f32 [..., 4]."""
    return frame[..., 0, :, 0].float() / 127.5 - 1


def latent(state_B4: Tensor) -> Tensor:
    return torch.cat([state_B4, state_B4[:, 2:] - state_B4[:, :2]], -1)


def moved(state_B4: Tensor, action_BA: Tensor) -> Tensor:
    if action_BA.shape[1] == 4:  # one-hot: left, right, down, up
        action_BA = torch.stack([action_BA[:, 1] - action_BA[:, 0], action_BA[:, 3] - action_BA[:, 2]], -1)
    return torch.cat([(state_B4[:, :2] + SPEED * action_BA).clamp(-1, 1), state_B4[:, 2:]], -1)


def reward(state_B4: Tensor) -> Tensor:
    return -(state_B4[:, :2] - state_B4[:, 2:]).norm(dim=-1, keepdim=True)


def away(state_B4: Tensor) -> Tensor:
    """The action that leads away from the goal, f32 [B, 2]."""
    return (state_B4[:, :2] - state_B4[:, 2:]).sign() * 0.8


def states(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, 4, generator=generator) * 2 - 1


@dataclass
class PointDream:
    """The true dynamics as a Dream; `clips` and `paths` remember what it was asked."""

    spec: ModelSpec
    weight: Tensor = field(default_factory=lambda: torch.ones((), requires_grad=True))
    """Stands for the weights of a model: no gradient may ever reach it."""
    clips: list[TensorDict] = field(default_factory=list)
    end: int = 99
    """Imagined step at which `continue` becomes 0."""
    poison: float = 0.0
    """Added to every imagined reward."""

    def encode(self, clip: TensorDict) -> TensorDict:
        self.clips.append(clip)
        # the newest frame: the last of the window, or of the context where the window is empty
        state = (
            clip["codes"][:, -1] if "codes" in clip else read(torch.cat([clip["context"], clip["pixels"]], 1)[:, -1])
        )
        return TensorDict({"latent": latent(state) * self.weight, "state": state}, batch_size=[len(state)])

    def rollout(self, policy, start, memory, horizon, *, stream, draw, keys=("latent",), processes=None) -> Rollout:
        state, seen, steps = start["state"], start["latent"], []
        for step in range(horizon):
            action, memory = policy(TensorDict({"latent": seen}, batch_size=[len(seen)]), memory)
            state = moved(state, action)
            arrived = {
                "latent": latent(state) * self.weight,
                "reward": reward(state) * self.weight + self.poison,
                "continue": torch.full((len(state), 1), 0.0 if step >= self.end else 1.0),
            }
            steps.append(TensorDict({"latent": seen, "action": action, "next": arrived}, batch_size=[len(state)]))
            seen = arrived["latent"]
        return Rollout(torch.stack(steps, 1), TensorDict({}, batch_size=[len(state)]), memory)


@dataclass
class PointReplay:
    """Random states as clips; `codes` holds the state itself. Who demonstrates drives away from the goal."""

    burn_in: int
    action_dim: int = 2
    alive: float = 1.0

    def clips(
        self, n: int, length: int, *, stream: str, draw: int, codes: bool = False, subset: Subset = "all"
    ) -> TensorDict:
        assert codes
        demonstrated = subset == "demos"
        assert length == self.burn_in + demonstrated
        state = states(n, Seeds(11).torch(stream, draw))
        clip = {
            "context_codes": torch.zeros(n, 3, dtype=torch.int64),
            "codes": state[:, None].repeat(1, max(1, length), 1),
            "action": torch.zeros(n, length, self.action_dim),
            "reward": torch.zeros(n, length),
            "continue": torch.full((n, length), self.alive),
        }
        if demonstrated:
            clip["codes"][:, -1] = 9.0  # what the expert's action led to: nobody may look
            clip["action"][:, -1] = away(state)
        return TensorDict(clip, batch_size=[n])

    def __len__(self) -> int:
        return 1000


def agent(config: DreamerConfig, *, discrete: bool = False, seed: int = 5, **spec_changes: Any) -> Dreamer:
    env = env_spec(discrete=discrete)
    model = spec(action_dim=env.action_dim, **spec_changes)
    return config.build(spec=model, env_spec=env, dream=PointDream(model), seeds=Seeds(seed), device="cpu")


def played(driver: Dreamer | None, *, discrete: bool = False, rows: int = 200, decisions: int = 10) -> float:
    """Mean reward per decision of a greedy agent (None: uniformly random actions) from fixed random starts."""
    generator = torch.Generator().manual_seed(17)
    state, memory, total = states(rows, generator), None, 0.0
    for step in range(decisions):
        if driver is not None:
            td = TensorDict({"pixels": draw(state), "is_init": torch.full((rows, 1), step == 0)}, batch_size=[rows])
            action, memory = driver.act(td, memory, "evaluate", step=step)
        elif discrete:
            action = torch.eye(4)[torch.randint(4, (rows,), generator=generator)]
        else:
            action = torch.rand(rows, 2, generator=generator) * 2 - 1
        state = moved(state, action)
        total += float(reward(state).mean())
    return total / decisions
