"""Runs what a GPU runs on tensors of a card that does not exist: shapes and devices are true, there are no values.

`python -m tests.fake_card`: one line of JSON, case -> "ok" or the fault. Mixed devices raise, and so does whatever
reads a value on the host. A CPU build has no CUDA guard, without which autograd cannot run on fake CUDA tensors; so the
card is torch's backend for others, which takes the same ways through our code: those of a device that is not the CPU.
Random numbers come from the CPU's generators. In a process of its own: the backend is there for good.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from agents.dreamer import Dreamer
from agents.planner import SEEN, Planner
from mbrl.cli.compose import compose
from mbrl.cli.train import as_plain
from mbrl.rundir.build import make
from tests.worldmodel.test_ivideogpt import SIDE, A, Q, build
from worldmodel import seeds
from worldmodel.dream.imagine import Dream
from worldmodel.dream.session import DreamSession
from worldmodel.ivideogpt import IVideoGPT
from worldmodel.processes import alone
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec

B, FRAMES, CARD = 4, 5, "card:0"
MASKED = ("worldmodel.decoding={kind:masked,passes:3}",)
WORDS = ("worldmodel.proprio=true", "worldmodel.losses.aux_coef=1.0")
ENV_SPEC = EnvSpec(image=SIDE, action_dim=A, discrete=False, action_repeat=1, decisions=9, terminates=False)


class Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def synchronize(self) -> None:
        """A clip that comes from the CPU waits for nothing here."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Those of a GPU."""
        return [torch.float16, torch.bfloat16]


class OnCPU(torch.Generator):
    """A generator on the CPU whatever was asked for."""

    def __new__(cls, device: Any = "cpu") -> OnCPU:
        """`device` is not there."""
        return super().__new__(cls)


def moved_to_card(model: nn.Module) -> nn.Module:
    """The model with weights of the same sizes that are on the card and nowhere."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype, device=CARD)
                module._parameters[name] = nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=CARD)
    return model


def clip(device: str, frames: int = FRAMES, rows: int = B) -> TensorDict:
    held = {
        "context": torch.zeros(rows, 1, 3, SIDE, SIDE, dtype=torch.uint8, device=device),
        "pixels": torch.zeros(rows, frames, 3, SIDE, SIDE, dtype=torch.uint8, device=device),
        "action": torch.zeros(rows, frames, A, device=device),
        "proprio": torch.zeros(rows, frames, Q, device=device),
        "reward": torch.zeros(rows, frames, device=device),
        "continue": torch.ones(rows, frames, device=device),
        "reward_mask": torch.ones(rows, frames, dtype=torch.bool, device=device),
    }
    return TensorDict(held, batch_size=[rows])


def in_dreams(model: IVideoGPT, plain: dict[str, Any]) -> dict[str, Any]:
    """A clip from the CPU; observed, forked, and rolled out by a policy that looks at frames."""
    dream = Dream(model, seeds=Seeds(0))
    state = dream.encode(clip("cpu", frames=model.spec.burn_in))
    state = dream.observe(state, torch.zeros(B, A), step("cpu"))
    forks = dream.fork(state, 3)

    def policy(td: TensorDict, memory: Any) -> tuple[Tensor, Any]:
        return td["pixels"].float().mean((2, 3))[:, :A] + td["hidden"][:, :A], memory

    keys = ("pixels", "hidden", "proprio")
    found = dream.rollout(policy, forks, None, 3, stream="x", draw=0, keys=keys)
    found = dream.rollout(policy, found.state, found.memory, 2, stream="x", draw=0, keys=keys, sample=False)
    return {"rewards": found.path["next", "reward"], "pixels": found.path["next", "pixels"], **found.state["wm"]}


def in_sessions(model: IVideoGPT, plain: dict[str, Any]) -> dict[str, Any]:
    """What the faces of a dream have in common: begun at clips from the CPU, led to the horizon by actions from it."""

    def starts(rows: int, draw: int) -> TensorDict:
        return clip("cpu", frames=model.spec.burn_in, rows=rows)

    made: dict[str, Any] = {}
    for discrete in (False, True):
        spec, how = replace(ENV_SPEC, discrete=discrete), {"starts": starts, "rows": B, "stream": "x", "device": CARD}
        session = DreamSession(Dream(model, seeds=Seeds(0)), spec, horizon=3, **how)  # type: ignore[arg-type]
        state = session.begin()
        for _ in range(3):
            state = session.step(state, session.executed(torch.zeros(B, A)))
        seen = session.dream.view(state, ("latent", "pixels", "continue"))
        made |= {f"{key} {discrete}": value for key, value in {**seen, "over": session.over(state)}.items()}
    return made


def step(device: str) -> TensorDict:
    return TensorDict({key: clip(device)[key][:, 0] for key in ("pixels", "proprio")}, batch_size=[B])


def losses(part: Any) -> Callable[..., dict[str, Any]]:
    def run(model: IVideoGPT, plain: dict[str, Any]) -> dict[str, Any]:
        model.train()
        found = model.losses(clip("cpu"), part, step=3, generator=torch.Generator())
        found["loss"].backward()
        grads = {name: p.grad for name, p in model.parameters_of(part).items() if p.grad is not None}
        assert grads
        return found | grads

    return run


class Starts:
    """Clips of codes, on the CPU as replay's are."""

    def __init__(self, model: IVideoGPT) -> None:
        self.model = model

    def clips(self, n: int, length: int, **_: Any) -> TensorDict:
        layout = self.model.layout
        codes = {
            "context_codes": torch.zeros(n, layout.codes_context, dtype=torch.int64),
            "codes": torch.zeros(n, length, layout.codes_future, dtype=torch.int64),
        }
        return clip("cpu", frames=length, rows=n).exclude("context", "pixels").update(codes)


def update(model: IVideoGPT, plain: dict[str, Any]) -> dict[str, Any]:
    """An agent's update; what it reads on the host is counted: a dream, each optimizer's step, and the numbers."""
    read: list[int] = []

    def to_host(values: Tensor) -> list[float]:
        read.append(values.numel())
        return [0.0] * (values.numel() - 1) + [float(values.numel() > 1)]

    config = make(plain["agent"], "agent", trusted=True)
    with unset_fake_temporarily():
        dream, one = Dream(model, seeds=Seeds(0)), alone("cpu")
        agent = Dreamer(config, spec=model.spec, env_spec=ENV_SPEC, dream=dream, seeds=Seeds(0), processes=one)
    agent.normaliser = config.normaliser.build()
    for net, of in ((agent.actor, "actor_optim"), (agent.critic, "critic_optim")):
        setattr(agent, of, getattr(config, of).build(dict(moved_to_card(net).named_parameters())))
    with (
        patch("worldmodel.optim.to_host", to_host),
        patch("agents.dreamer.to_host", to_host),
        patch("agents.distributions.to_host", to_host),
    ):
        metrics = agent.learn(Starts(model), 0)
    assert metrics["agent/skipped"] == 0.0, metrics
    assert len(read) == 1 + 2 * config.epochs + 1, read
    return agent.state_dict()


def plan(model: IVideoGPT, plain: dict[str, Any]) -> dict[str, Any]:
    """A planner's decision after what was seen; it is read on the host once, whether its scores are finite."""
    read: list[int] = []
    seen, size, made = clip("cpu", frames=model.spec.burn_in), ["agent.horizon=4", "agent.candidates=9"], {}
    for objective in SEEN:
        goal = None if objective == "reward" else torch.zeros(3, SIDE, SIDE, dtype=torch.uint8, device=CARD)
        aim = [f"agent.objective={objective}", f"agent.goal={'null' if goal is None else 'goal.png'}"]
        config = make(as_plain(compose("train", ["agent=cem", *size, *aim]))["agent"], "agent", trusted=True)
        agent = Planner(config, dream=Dream(model, seeds=Seeds(0)), seeds=Seeds(0), device=CARD, goal=goal, inner=None)
        with patch("agents.distributions.to_host", lambda values: read.append(values.numel()) or [0.0]):
            goals, mean_BHA = agent._goals(seen), torch.zeros(B, config.horizon, A, device=CARD)
            made[objective] = agent._refined(mean_BHA, agent._dream.encode(seen), goals, 0)
    assert read == [1] * len(SEEN), read
    return made


def off_policy(model: IVideoGPT, plain: dict[str, Any]) -> dict[str, Any]:
    """A pixel policy in a dream, whose memory is frames; it reads nothing on the host."""
    config = make(as_plain(compose("train", ["agent=drqv2_cpu"]))["agent"], "agent", trusted=True)
    with unset_fake_temporarily():
        agent = config.build(env_spec=ENV_SPEC, seeds=Seeds(0), device="cpu")
    for name in ("actor", "critic"):
        moved_to_card(getattr(agent, name))
    agent._device = CARD
    dream, seen = Dream(model, seeds=Seeds(0)), clip("cpu", frames=model.spec.burn_in)
    state = dream.encode(seen)
    memory = agent.frames.before(dream.detokenize(*dream.codes_of(state)))
    policy = agent.policy(torch.Generator())
    found = dream.rollout(policy, state, memory, 3, stream="x", draw=0, keys=("pixels",))
    return {"action": found.path["action"], "frames": found.memory["frames"]}


CASES: dict[str, Callable[[IVideoGPT, dict[str, Any]], dict[str, Any]]] = {
    "dream": in_dreams,
    "masked dream": in_dreams,
    "masked dynamics": losses("dynamics"),
    "session": in_sessions,
    "dynamics": losses("dynamics"),
    "tokenizer": losses("tokenizer"),
    "agent": update,
    "planner": plan,
    "off-policy": off_policy,
}
PLANTED: dict[str, Callable[[IVideoGPT, dict[str, Any]], dict[str, Any]]] = {
    "planted: a read": lambda model, plain: {"x": torch.tensor(float(model.tokens.llm.lm_head.basis.sum()))},
    "planted: two devices": lambda model, plain: {"x": model.tokens.llm.lm_head.basis + torch.zeros(1, 1)},
}
"""Faults, to see that they are found."""
ON_CPU = ("updates", "explored", "failed")
"""Ends of the names of what belongs on the host: counters."""


def main() -> dict[str, str]:
    """Every case and how it went."""
    _setup_privateuseone_for_python_backend("card", backend_module=Backend())
    plain = as_plain(compose("train", ["experiment=toy", *WORDS, "agent.horizon=4", "agent.batch_size=6"]))
    found = {}
    with patch.object(torch, "Generator", OnCPU), patch.object(seeds, "seed_of", lambda _: 7):
        for name, case in (CASES | PLANTED).items():
            model = build(*WORDS, *(MASKED if name.startswith("masked") else ()))
            try:
                with FakeTensorMode():
                    moved_to_card(model)
                    made = case(model, plain)
                strangers = [key for key, x in made.items() if str(x.device) != CARD and not key.endswith(ON_CPU)]
                found[name] = f"not on the card: {strangers}" if strangers else "ok"
            except Exception:
                found[name] = traceback.format_exc()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()) + "\n")
