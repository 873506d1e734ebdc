"""Actor and critic that learn only inside a dream (DreamerV3, arXiv:2301.04104).

Knows a Replay's clips, a Dream's latents and rewards; nothing of tokens, frames or environments.

B starts, H imagined steps, S = H + 1 states, D latent, A action, E environments.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Dream, DreamMetrics, Memory, Metrics, Mode, Policy, Replay
from agents.distributions import BoundedNormal, LearnedStdConfig, ScheduledStdConfig, check_finite
from agents.exploration import Exploration
from agents.memory import LatentFilter, without_last
from agents.nets import Actor, Critic
from agents.parts import Counts, joined, split
from agents.returns import DemoBatch, ImaginedBatch, PercentileNormConfig, StdNormConfig, lambda_returns
from worldmodel.optim import OptimConfig, Optimizer, to_host
from worldmodel.processes import Processes, alone
from worldmodel.seeds import Seeds
from worldmodel.spec import EnvSpec, ModelSpec
from worldmodel.twohot import TwoHot

NETS, OPTIMS = ("actor", "critic", "target_critic", "averaged_actor"), ("actor_optim", "critic_optim")
PARTS = (*NETS, *OPTIMS, "normaliser", "count")
"""What the state of a `Dreamer` is made of."""


@dataclass(frozen=True, kw_only=True)
class DreamerConfig:
    """Settings of a `Dreamer`.

    Attributes:
        batch_size: imagined trajectories per update.
        horizon: imagined decisions per start.
        gamma: discount per decision, in (0, 1).
        lambda_: lambda-return mixing, in [0, 1].
        layers: hidden layers of actor and critic.
        units: their width.
        bins: two-hot bins of the critic, odd.
        limit: the outermost bins are at symexp(+-limit), in environment units.
        zero_init_value: the critic starts narrowly at value 0; else uniform over its bins (whose mean is 0 too).
        tau: share of the critic that its slow copy takes over after each update, in (0, 1]; null without `target_reg`.
        target_reg: weight of the loss that keeps the critic near its slow copy; 0 does without.
        actor_tau: the same share of the actor, for the average of its weights that plays in evaluations, in (0, 1); the
            first 1 / actor_tau updates count alike. Null: the newest weights play.
        epochs: optimizer steps on each imagined batch.
        ratio_clip: how far the probability ratio may leave 1 before its gradient ends (PPO); null with one epoch, where
            the ratio is 1.
        entropy_coef: weight of the entropy bonus per nat.
        logit_reg: weight of the squared output before the squashing tanh of continuous policies; 0 in DreamerV3. Where
            advantages are mostly noise the output drifts outwards, and beyond 2 its gradient is gone: the policy then
            takes one and the same extreme action in every state, for good.
        bc_coef: behaviour cloning: weight of the likelihood of demonstrated actions, as if each had this advantage; 0
            in DreamerV3.
        unimix: share of uniform probability in discrete policies, in [0, 1).
        std: who sets the exploration of continuous actions: the actor itself, or a schedule over real decisions.
        noise_correlation: of the exploration noise of successive real decisions, in [0, 1); dreams have none.
        greedy_episodes: share of the training episodes that are played greedily, in [0, 1); dreams always have noise.
        normaliser: brings advantages to one scale.
        actor_optim: optimizer of the actor.
        critic_optim: optimizer of the critic.
    """

    batch_size: int
    horizon: int
    gamma: float
    lambda_: float
    layers: int
    units: int
    bins: int
    limit: float
    zero_init_value: bool
    tau: float | None
    target_reg: float
    actor_tau: float | None
    epochs: int
    ratio_clip: float | None
    entropy_coef: float
    logit_reg: float
    bc_coef: float
    unimix: float
    std: LearnedStdConfig | ScheduledStdConfig
    noise_correlation: float
    greedy_episodes: float
    normaliser: PercentileNormConfig | StdNormConfig
    actor_optim: OptimConfig
    critic_optim: OptimConfig

    def __post_init__(self) -> None:
        for name in ("batch_size", "horizon", "layers", "units", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        for name, right, text in (
            ("gamma", 0 < self.gamma < 1, "in (0, 1)"),
            ("lambda_", 0 <= self.lambda_ <= 1, "in [0, 1]"),
            ("bins", self.bins >= 3 and self.bins % 2 == 1, "odd and >= 3"),
            ("limit", 0 < self.limit <= 40, "in (0, 40]"),
            ("target_reg", self.target_reg >= 0, ">= 0"),
            ("tau", self.tau is None or self.target_reg > 0, "null with target_reg=0, where it has no effect"),
            ("tau", not self.target_reg or 0 < (self.tau or 0) <= 1, f"in (0, 1] with target_reg={self.target_reg}"),
            ("actor_tau", self.actor_tau is None or 0 < self.actor_tau < 1, "null or in (0, 1)"),
            ("ratio_clip", self.ratio_clip is None or self.epochs > 1, "null with epochs=1, where it has no effect"),
            ("ratio_clip", self.epochs == 1 or 0 < (self.ratio_clip or 0) < 1, f"in (0, 1) with epochs={self.epochs}"),
            ("entropy_coef", self.entropy_coef >= 0, ">= 0"),
            ("logit_reg", self.logit_reg >= 0, ">= 0"),
            ("bc_coef", self.bc_coef >= 0, ">= 0"),
            ("unimix", 0 <= self.unimix < 1, "in [0, 1)"),
            ("noise_correlation", 0 <= self.noise_correlation < 1, "in [0, 1)"),
            ("greedy_episodes", 0 <= self.greedy_episodes < 1, "in [0, 1)"),
        ):
            if not right:
                raise ValueError(f"{name} must be {text} (got {getattr(self, name)})")

    @property
    def imitates(self) -> bool:
        """Whether demonstrations are needed."""
        return self.bc_coef > 0

    def build(
        self,
        *,
        spec: ModelSpec,
        env_spec: EnvSpec,
        dream: Dream,
        seeds: Seeds,
        device: str,
        processes: Processes | None = None,
    ) -> Dreamer:
        """A fresh agent on `device`, its weights drawn from stream `init/agent`; `processes` share its batches."""
        agent = Dreamer(self, spec=spec, env_spec=env_spec, dream=dream, seeds=seeds, processes=processes or alone())
        return agent.to(device)


class Dreamer:
    """Acts on the latent of the last real frames; learns from imagined trajectories alone."""

    def __init__(
        self,
        config: DreamerConfig,
        *,
        spec: ModelSpec,
        env_spec: EnvSpec,
        dream: Dream,
        seeds: Seeds,
        processes: Processes,
    ) -> None:
        if spec.action_dim != env_spec.action_dim:
            raise ValueError(
                f"the model has {spec.action_dim} action dimensions, the environment {env_spec.action_dim}"
            )
        spec.require_horizon(config.horizon)
        self._dream, self._seeds, self._processes = dream, seeds, processes
        self._codes = spec.codes is not None
        self._filter = LatentFilter(dream)
        self._batch_size, self._horizon, self._burn_in = config.batch_size, config.horizon, spec.burn_in
        self.gamma, self._lambda, self._action_dim = config.gamma, config.lambda_, spec.action_dim
        self._tau, self._target_reg, self._actor_tau = config.tau, config.target_reg, config.actor_tau
        self._epochs, self._ratio_clip = config.epochs, config.ratio_clip
        self._entropy_coef, self._logit_reg, self._bc_coef = config.entropy_coef, config.logit_reg, config.bc_coef
        self._schedule = config.std if isinstance(config.std, ScheduledStdConfig) else None
        self._exploration = Exploration(
            action_dim=spec.action_dim,
            correlation=config.noise_correlation,
            greedy_episodes=config.greedy_episodes,
            seeds=seeds,
        )

        generator = seeds.torch("init/agent")
        size = {"layers": config.layers, "units": config.units}
        learned = None if isinstance(config.std, ScheduledStdConfig) else config.std
        self.actor = Actor(
            spec.latent_dim,
            spec.action_dim,
            discrete=env_spec.discrete,
            std=learned,
            unimix=config.unimix,
            **size,
            generator=generator,
        )
        twohot = TwoHot(low=-config.limit, high=config.limit, bins=config.bins)
        self.critic = Critic(
            spec.latent_dim, twohot, zero_init_value=config.zero_init_value, **size, generator=generator
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False) if config.target_reg else None
        self.averaged_actor = copy.deepcopy(self.actor).requires_grad_(False) if config.actor_tau else None
        self.normaliser = config.normaliser.build()
        self.actor_optim = config.actor_optim.build(dict(self.actor.named_parameters()))
        self.critic_optim = config.critic_optim.build(dict(self.critic.named_parameters()))
        # explored: the newest `step` of explore mode, as dreams explore as much as the real world does
        self.count = Counts(explored=0, failed=0)

    def to(self, device: torch.device | str) -> Dreamer:
        """Moves weights and moments; inputs are brought there, actions are given back where the pixels were."""
        for name in (*NETS, *OPTIMS):
            if (part := getattr(self, name)) is not None:
                part.to(device)
        return self

    @torch.no_grad()
    def act(self, td: TensorDict, memory: Memory, mode: Mode, *, step: int) -> tuple[Tensor, Memory]:
        """See `agents.api.Agent.act`; mode `evaluate` takes the mode of the averaged policy and draws nothing."""
        before, memory = memory, self._filter.see(td, memory)
        actor = self.averaged_actor if mode == "evaluate" and self.averaged_actor is not None else self.actor
        policy = actor(self._filter.latent(memory, device=self._device), self._std_at(step))
        policy.check()
        if mode == "evaluate":
            action_EA = policy.mode.to(memory["action"].device)
            return action_EA, memory.update({"action": action_EA})
        self.count["explored"] = step
        drawn = self._exploration.draw(td, before, step)
        noisy_EA = policy.sample(drawn["noise"].to(self._device)).to(drawn["noise"].device)
        action_EA = torch.where(drawn["greedy"], policy.mode.to(noisy_EA.device), noisy_EA)
        return action_EA, memory.update({"action": action_EA, **drawn})

    def learn(self, replay: Replay, update: int) -> Metrics:
        """One update of actor and critic in imagination.

        An update that is not finite is skipped; `agent/skipped` says so.
        Raises: FloatingPointError after 10 of them in a row.
        """
        begun = time.perf_counter()
        self.count["explored"] = self._processes.all_reduce_max(self.count["explored"])  # one of them acts
        try:
            imagined = self._imagined(replay, update)
            imagined_at = time.perf_counter()
            scalars = self._fit(imagined, self._demo_batch(replay, update) if self._bc_coef else None)
            self._update_averages(update)
        except FloatingPointError as fault:
            self.count.failure(True, f"number {update}: {fault}")
            return {"agent/skipped": 1.0}
        self.count.failure(False, update)
        there = {name: value.float() for name, value in scalars.items() if isinstance(value, Tensor)}
        scalars |= zip(there, to_host(self._processes.mean(torch.stack(list(there.values())))), strict=True)
        metrics = {f"agent/{name}": value for name, value in scalars.items()}
        metrics |= {"agent/skipped": 0.0, "time/actor_critic_s": time.perf_counter() - imagined_at}
        frames = self._batch_size * self._horizon
        return DreamMetrics(metrics, imagined_frames=frames, imagine_s=imagined_at - begun)

    def dream_policy(self, generator: torch.Generator) -> Policy:
        """See `agents.api.ModelBasedAgent.dream_policy`."""
        return self._policy(generator, alone())

    def _policy(self, generator: torch.Generator, processes: Processes) -> Policy:
        std = self._std_at(self.count["explored"])

        def policy(td: TensorDict, memory: Memory) -> tuple[Tensor, Memory]:
            latent_BD, rows = td["latent"], len(td) * processes.world  # drawn for all rows, whoever has which
            noise_RA = torch.randn(rows, self._action_dim, generator=generator, device=latent_BD.device)
            return self.actor(latent_BD, std).sample(processes.own_rows(noise_RA)), memory

        return policy

    @torch.no_grad()
    def value(self, latent_BD: Tensor) -> Tensor:
        """See `agents.api.ModelBasedAgent.value`."""
        return self.critic.value(latent_BD.to(self._device))

    @torch.no_grad()
    def _imagined(self, replay: Replay, update: int) -> ImaginedBatch:
        """Imagines from inside real clips, and judges what was imagined."""
        clip = replay.clips(self._batch_size, self._burn_in, stream="learn", draw=update, codes=self._codes).to(
            self._device
        )
        policy = self._policy(self._seeds.torch("imagine/policy", update, device=self._device), self._processes)
        with self._processes.together():
            state = self._dream.encode(clip)
            path = self._dream.rollout(
                policy, state, None, self._horizon, stream="imagine", draw=update, processes=self._processes
            ).path
            latent_BSD = torch.cat([path["latent"][:, :1], path["next", "latent"]], 1)
            reward_BH, continue_BH = path["next", "reward"][..., 0], path["next", "continue"][..., 0]
            # a start in which the real episode terminated counts for nothing
            alive_B = clip["continue"][:, -1] if self._burn_in else torch.ones_like(reward_BH[:, 0])
            weight_BH = torch.cat([alive_B[:, None], continue_BH[:, :-1]], 1).cumprod(1)
            value_BS = self.critic.value(latent_BSD)
            return_BH = lambda_returns(reward_BH, value_BS[:, 1:], self.gamma * continue_BH, self._lambda)
            check_finite("imagined returns", return_BH)
        whole, surplus_BH = map(self._processes.all_gather_rows, (return_BH, return_BH - value_BS[:, :-1]))
        advantage_BH = self._processes.own_rows(self.normaliser(whole, surplus_BH))  # one scale for the whole batch
        target_BH = self.target_critic.value(latent_BSD[:, :-1]) if self.target_critic else None
        metrics = {
            "reward_mean": reward_BH.mean(),
            "continue_mean": continue_BH.mean(),
            "value_mean": value_BS.mean(),
            "return_mean": return_BH.mean(),
            "advantage_std": surplus_BH.std(),
            "advantage_scale": self.normaliser.scale(),
        }
        return ImaginedBatch(latent_BSD[:, :-1], path["action"], return_BH, advantage_BH, target_BH, weight_BH, metrics)

    @torch.no_grad()
    def _demo_batch(self, replay: Replay, update: int) -> DemoBatch:
        """Real states of demonstrations, as many as dreams begin, and what the expert did next in each."""
        clip = replay.clips(
            self._batch_size, self._burn_in + 1, stream="imitate", draw=update, codes=self._codes, subset="demos"
        ).to(self._device)
        return DemoBatch(self._dream.encode(without_last(clip))["latent"], clip["action"][:, -1])

    def _fit(self, imagined: ImaginedBatch, demos: DemoBatch | None) -> dict[str, Tensor | float]:
        """`epochs` steps of actor and critic on one imagined batch; scalars of the first epoch."""
        old_log_prob_BH: Tensor | None = None
        scalars: dict[str, Tensor | float] = dict(imagined.metrics)
        for epoch in range(self._epochs):
            with self._processes.together():
                policy = self.actor(imagined.latent, self._std_at(self.count["explored"]))
                log_prob_BH = policy.log_prob(imagined.action)
                if old_log_prob_BH is None:
                    old_log_prob_BH = log_prob_BH.detach()
                entropy_BH = policy.entropy()
                gain_BH = self._surrogate(log_prob_BH - old_log_prob_BH, imagined.advantage)
                gain_BH = gain_BH + self._entropy_coef * entropy_BH - self._logit_reg * policy.pre_tanh_sq
                actor_loss = -(imagined.weight * gain_BH).mean()
                if demos is not None:
                    expert = self.actor(demos.latent, self._std_at(self.count["explored"])).log_prob(demos.action)
                    actor_loss = actor_loss - self._bc_coef * expert.mean()
                critic_loss = self._critic_loss(imagined)
            actor_norm = self._step(self.actor_optim, actor_loss)
            critic_norm = self._step(self.critic_optim, critic_loss)
            if actor_norm is None or critic_norm is None:
                losses = f"actor {actor_loss.item()}, critic {critic_loss.item()}"
                raise FloatingPointError(f"losses and gradients must be finite (got {losses})")
            if epoch == 0:
                scalars = {**scalars, "critic_loss": critic_loss.detach(), "entropy": entropy_BH.detach().mean()}
                scalars |= {"actor_grad_norm": actor_norm, "critic_grad_norm": critic_norm}
                if demos is not None:
                    scalars["bc_loss"] = expert.detach().mean()
                if isinstance(policy, BoundedNormal):
                    scalars["std"] = policy.std.detach().mean()
                    scalars["saturation"] = policy.mode.detach().abs().mean()
        scalars["actor_loss"] = actor_loss.detach()  # the last epoch's: in the first one every ratio is still 1
        device = imagined.returns.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in scalars.items()}

    def _step(self, optim: Optimizer, loss: Tensor) -> float | None:
        loss.backward()
        self._processes.average_gradients(optim.parameters)
        return optim.apply(self._processes.mean(loss.detach()))

    def _surrogate(self, log_ratio_BH: Tensor, advantage_BH: Tensor) -> Tensor:
        """PPO's clipped objective; where the ratio is 1 (the first epoch) its gradient is REINFORCE's."""
        ratio_BH = log_ratio_BH.exp()
        if self._ratio_clip is None:
            return ratio_BH * advantage_BH
        clipped_BH = ratio_BH.clamp(1 - self._ratio_clip, 1 + self._ratio_clip)
        return torch.minimum(ratio_BH * advantage_BH, clipped_BH * advantage_BH)

    def _critic_loss(self, imagined: ImaginedBatch) -> Tensor:
        logits = self.critic(imagined.latent)
        loss_BH = self.critic.twohot.loss(logits, imagined.returns)
        if imagined.target_value is not None:
            loss_BH = loss_BH + self._target_reg * self.critic.twohot.loss(logits, imagined.target_value)
        return (imagined.weight * loss_BH).mean()

    @torch.no_grad()
    def _update_averages(self, update: int) -> None:
        actor_tau = self._actor_tau and max(self._actor_tau, 1 / (update + 1))
        averages = (self.target_critic, self.critic, self._tau), (self.averaged_actor, self.actor, actor_tau)
        for average, net, share in averages:
            if average is not None and share is not None:
                for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
                    slow.lerp_(fast, share)

    def _std_at(self, step: int) -> float:
        return self._schedule.at(step) if self._schedule else 1.0  # read only where it is scheduled

    @property
    def _device(self) -> torch.device:
        return next(self.actor.parameters()).device

    def _parts(self) -> dict[str, Mapping[str, Tensor]]:
        held = {name: getattr(self, name) for name in PARTS}
        return {name: part.state_dict() for name, part in held.items() if part is not None}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments, normaliser and counters, flat, by dotted name (not copies)."""
        return joined(self._parts())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`; copies.

        Raises: ValueError if a name is missing, unknown or has another shape; nothing is changed then.
        """
        for part, held in split(state, self._parts()).items():
            getattr(self, part).load_state_dict(held)
