"""iVideoGPT as a WorldModel: the tokenizer, the token model and the rollout engine put together.

The only file that sees all three. Composition only: networks, losses and the cache live in their own files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from worldmodel import proprio
from worldmodel.losses.parts import AuxiliaryHeads, LossConfig, reward_targets
from worldmodel.losses.tokenizer import TokenizerObjective, evaluating, unit
from worldmodel.microbatch import MicroBatch, Source, uniform
from worldmodel.rollout.engine import Frame, TokenEngine
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.seeds import Seeds, moved, seeded_globally
from worldmodel.spec import ContextMode, EnvSpec, ModelSpec, Part, Reads
from worldmodel.tokenizer.compressive import CompressiveTokenizer, TokenizerConfig
from worldmodel.transformer.llama import TransformerConfig
from worldmodel.transformer.token_model import HeadConfig, TokenModel

# B rows, t context frames, N codes of a context frame, F future frames, K codes of a future frame, A action, D latent

LATENT_PARTS = ("context", "codes", "hidden")
ENGINES = 8  # row counts (acting, evaluating, dreaming, measuring, ...) whose caches are kept
CONTEXT_POOL = 4  # the context's code vectors are averaged to a 4x4 grid before an agent reads them


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """How tokenizer and transformer are joined, and what an agent reads of them.

    Attributes:
        context: see `worldmodel.spec.ModelSpec`.
        burn_in: real frames given after the context when imagination or acting starts.
        max_frames: future frames of a training clip; imagination may not go beyond.
        embedding: `table`: a free vector for each token id (published); `levels`: an id's vector is composed of its
            code's levels, so that neighbouring codes share what is learned of them (of use with FSQ).
        latent: what an agent reads, any of `context` (pooled code vectors of the context), `codes` (code vectors of the
            newest frame), `hidden` (the transformer's state at the newest frame's last code).
        proprio: whether the model is told what the robot knows of itself and predicts it (`worldmodel.proprio`).
    """

    context: ContextMode
    burn_in: int
    max_frames: int
    embedding: Literal["table", "levels"]
    latent: tuple[str, ...]
    heads: HeadConfig
    losses: LossConfig
    sampling: SamplingConfig
    proprio: bool

    @property
    def reads(self) -> tuple[Reads, ...]:
        """See `worldmodel.spec.ModelSpec`."""
        return ("pixels", "proprio") if self.proprio else ("pixels",)

    def __post_init__(self) -> None:
        if self.context not in ("sliding", "first_frame"):
            raise ValueError(f"context must be sliding or first_frame (got {self.context})")
        least = 1 if self.context == "first_frame" else 0
        if not least <= self.burn_in < self.max_frames:
            raise ValueError(f"burn_in must be >= {least} and below max_frames={self.max_frames} (got {self.burn_in})")
        if self.proprio and self.burn_in < 1:
            raise ValueError(
                f"burn_in must be >= 1 with proprio=true, which is known of real frames (got {self.burn_in})"
            )
        if self.embedding not in ("table", "levels"):
            raise ValueError(f"embedding must be table or levels (got {self.embedding})")
        unknown = [part for part in self.latent if part not in LATENT_PARTS]
        if unknown or not self.latent:
            raise ValueError(f"latent must be some of {', '.join(LATENT_PARTS)} (got {list(self.latent)})")

    def build(
        self, *, tokenizer: TokenizerConfig, transformer: TransformerConfig, env_spec: EnvSpec, seeds: Seeds
    ) -> IVideoGPT:
        """The model with fresh weights drawn from stream `init/worldmodel`."""
        generator = seeds.torch("init/worldmodel")
        with seeded_globally(generator):
            return IVideoGPT(
                self,
                tokenizer=tokenizer.build(),
                transformer=transformer,
                action_dim=env_spec.action_dim,
                proprio_dim=env_spec.proprio_dim if self.proprio else 0,
                terminates=env_spec.terminates,
                generator=generator,
            )


class IVideoGPT(nn.Module):
    """Predicts frames, rewards and continuation from t context frames and actions (worldmodel/api.py)."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        tokenizer: CompressiveTokenizer,
        transformer: TransformerConfig,
        action_dim: int,
        proprio_dim: int,
        terminates: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.tokenizer, self.layout = tokenizer, tokenizer.layout
        if self.layout.length(config.max_frames) > transformer.positions:
            raise ValueError(
                f"max_frames={config.max_frames} needs {self.layout.length(config.max_frames)} positions, "
                f"the transformer has {transformer.positions}: lower worldmodel.max_frames or raise its positions"
            )
        pooled = min(CONTEXT_POOL, tokenizer.config.side)
        widths = {
            "context": tokenizer.vector_dim * pooled**2,
            "codes": tokenizer.vector_dim * self.layout.codes_future,
            "hidden": transformer.hidden,
        }
        self.tokens = TokenModel(
            transformer,
            self.layout,
            action_dim=action_dim + proprio.WIDTH * proprio_dim,
            heads=config.heads,
            feature_dim=widths["context"] + widths["codes"] + proprio_dim,
            continues=terminates,
            proprio_dim=proprio_dim,
            features_VJ=tokenizer.id_features() if config.embedding == "levels" else None,
            generator=generator,
        )
        self.auxiliary = None
        if config.losses.aux_coef > 0:
            self.auxiliary = AuxiliaryHeads(
                codes=self.layout.codes_future,
                vector_dim=tokenizer.vector_dim,
                context_dim=widths["context"],
                action_dim=action_dim,
            )
        self.config, self.pooled = config, pooled
        self.objective = TokenizerObjective(
            config=config.losses, tokenizer=tokenizer, auxiliary=self.auxiliary, pooled=pooled
        )
        self.spec = ModelSpec(
            image=tokenizer.config.image,
            context_frames=self.layout.context,
            action_dim=action_dim,
            latent_dim=sum(widths[part] for part in config.latent) + proprio_dim,
            max_frames=config.max_frames,
            context=config.context,
            burn_in=config.burn_in,
            reads=config.reads,
        )
        self.version = self.tokenizer_version = 0
        self._engines: dict[int, TokenEngine] = {}

    # -- what an agent and the dream ask ------------------------------------------------------------------------------

    @torch.no_grad()
    def tokenize(self, context_BtCHW: Tensor, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 frames -> (context codes i64 [B, t*N], codes i64 [B, T, K])."""
        frames = (unit(context_BtCHW.to(self.device)), unit(frames_BTCHW.to(self.device)))
        with evaluating(self.tokenizer):
            context_codes_BtN, codes_BFK = self.tokenizer.tokenize(*frames)
        return context_codes_BtN.flatten(1), codes_BFK

    @torch.no_grad()
    def encode(self, clip: TensorDict) -> TensorDict:
        """A clip of at least `spec.burn_in` frames (pixels or codes) -> the dream state after its last frame."""
        clip = clip.to(self.device)
        context_BN, codes_BFK = self._codes(clip)
        wm = {"context": context_BN, "pooled": self._pooled(context_BN), "codes": codes_BFK, "actions": clip["action"]}
        if self.config.proprio:
            wm["actions"] = torch.cat([clip["action"], proprio.known(clip["proprio"])], -1)
            wm["proprio"] = clip["proprio"][:, -2:]  # f32 [B, 2, Q], or 1 if there is no more
        frame = self._engine(len(clip)).prefill(self._per_frame(context_BN), self._ids(codes_BFK), wm["actions"])
        if "context" in clip.keys():  # noqa: SIM118 - a TensorDict has no `in`
            wm["frames"] = clip["context"]  # u8 [B, t, 3, H, W]: only `observe` reads them
        return self._state(wm, frame)

    @torch.no_grad()
    def imagine(self, state: TensorDict, action_BA: Tensor, generator: Source | None) -> TensorDict:
        """Next state; codes sampled from `generator`, or the argmax where it is None."""
        action_BA = self._told(state, action_BA)
        return self._next(state, action_BA, self._resume(state).sample_frame(action_BA, generator))

    @torch.no_grad()
    def observe(
        self, state: TensorDict, action_BA: Tensor, frame_BCHW: Tensor, proprio_BQ: Tensor | None = None
    ) -> TensorDict:
        """Next state; codes read from a real uint8 frame. The state must come from pixels (its context is needed)."""
        if self.config.proprio != (proprio_BQ is not None):
            raise ValueError(f"observe needs proprio exactly if the model reads it (it reads {self.spec.reads})")
        if ("wm", "frames") not in state.keys(include_nested=True):
            raise ValueError("observe needs the context's pixels: encode a clip with `context` u8, not `context_codes`")
        action_BA = self._told(state, action_BA)
        _, codes_BFK = self.tokenize(state["wm", "frames"], frame_BCHW[:, None])
        frame = self._resume(state).force_frame(action_BA, self._ids(codes_BFK)[:, 0])
        return self._next(state, action_BA, frame, proprio_BQ)

    @torch.no_grad()
    def decode(self, state: TensorDict) -> Tensor:
        """The state's newest frame, u8 [B, 3, H, W]."""
        return self.decode_clip(state["wm", "context"], state["wm", "codes"][:, -1:])[:, -1]

    @torch.no_grad()
    def decode_clip(self, context_BN: Tensor, codes_BFK: Tensor) -> Tensor:
        """Frames u8 [B, F, 3, H, W] of future codes i64 [B, F, K] behind context codes i64 [B, t*N]."""
        with evaluating(self.tokenizer):
            _, frames_BFCHW = self.tokenizer.decode(self._per_frame(context_BN), codes_BFK)
        return (frames_BFCHW.clamp(0, 1) * 255).round().to(torch.uint8)

    # -- what the updater asks -----------------------------------------------------------------------------------------

    def prepare(self, part: Part) -> None:
        """Makes ready what the losses of `part` need beside the weights. Raises: ValueError where it is not there."""
        if part == "tokenizer" and self.config.losses.lpips and self.objective.distance is None:
            from worldmodel.evaluation.lpips import load_lpips  # here: few models are trained with it

            self.objective.distance = load_lpips().to(self.device)

    def losses(
        self, clip: TensorDict, part: Part, *, step: int, generator: torch.Generator, micro: MicroBatch | None = None
    ) -> dict[str, Tensor]:
        """Losses of one part on a training clip (worldmodel/api.py)."""
        clip = clip.to(self.device)
        micro = micro or MicroBatch.alone(clip)
        self.prepare(part)
        own = micro.own(generator)
        with seeded_globally(own):  # the tokenizer's dropout
            if part == "tokenizer":
                return self.objective(clip, step=step, generator=generator, micro=micro)
            return self._dynamics_losses(clip, moved(generator, self.device), moved(own, self.device), micro)

    def _dynamics_losses(
        self, clip: TensorDict, generator: torch.Generator, dropout: torch.Generator, micro: MicroBatch
    ) -> dict[str, Tensor]:
        cfg, noise = self.config.losses, micro.noise(generator)
        context_BN, codes_BFK = self._codes(clip)
        read_BFK, before_BN = codes_BFK, context_BN
        if cfg.token_noise:
            read_BFK = self.tokenizer.dynamics_quantize.jittered(codes_BFK, cfg.token_noise, noise)
        if cfg.context_swap_prob:
            strange_B1 = uniform(context_BN[:, :1].shape, noise, device=self.device) < cfg.context_swap_prob
            before_BN = torch.where(strange_B1, clip.get("other_codes", context_BN.roll(1, 0)), context_BN)
        given = 1 if self.config.context == "first_frame" else 0  # the clip's first frame is observed, not predicted
        reward_BF, known_BF = reward_targets(clip["reward"], clip["first"], cfg.reward_target)
        action_BFA, proprio_BFQ, push_BFQ = clip["action"], None, None
        if self.config.proprio:
            known_BFX = proprio.disturbed(proprio.known(clip["proprio"]), noise)
            action_BFA = torch.cat([action_BFA, known_BFX], -1)
            push_BFQ = proprio.push(clip["proprio"], known_BFX)
            proprio_BFQ = proprio.disturbed(clip["proprio"], noise, width=1)
        losses = self.tokens.losses(
            self._per_frame(before_BN),
            codes_BFK,
            read_BFK=read_BFK,
            actions_BFA=action_BFA,
            features_BFE=self._features(context_BN, read_BFK, proprio_BFQ),
            push_BFQ=push_BFQ,
            burn_in=self.config.burn_in,
            reward_BF=reward_BF,
            reward_known_BF=known_BF,
            continue_BF=clip["continue"],
            given=given,
            generator=dropout,
        )
        if "reward" in losses:
            losses["reward"] = cfg.reward * losses["reward"] * self._known_scale(known_BF, micro)
        metrics = {f"dynamics/{name}": value.detach() for name, value in losses.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **metrics}

    def _known_scale(self, known_BF: Tensor, micro: MicroBatch) -> Tensor:
        whole = reward_targets(micro.whole["reward"], micro.whole["first"], self.config.losses.reward_target)[1]
        return micro.scale(known_BF, whole.to(self.device))

    def parameters_of(self, part: Part) -> dict[str, nn.Parameter]:
        """Trainable parameters of one part, by name."""
        prefixes = ("tokenizer.", "auxiliary.") if part == "tokenizer" else ("tokens.",)
        return {name: p for name, p in self.named_parameters() if name.startswith(prefixes) and p.requires_grad}

    def updated(self, part: Part) -> None:
        """After an optimizer step: versions move, engines forget what they cached under the old weights."""
        self.version += 1
        if part == "tokenizer":
            self.tokenizer_version += 1
        for engine in self._engines.values():
            engine.forget()

    # -- helpers ------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are brought there."""
        return next(self.tokens.parameters()).device

    def _codes(self, clip: TensorDict) -> tuple[Tensor, Tensor]:
        if "codes" in clip.keys():  # noqa: SIM118 - a TensorDict has no `in`
            return clip["context_codes"], clip["codes"]
        return self.tokenize(clip["context"], clip["pixels"])

    def _per_frame(self, context_BN: Tensor) -> Tensor:
        return context_BN.unflatten(1, (self.layout.context, self.layout.codes_context))  # [B, t, N]

    def _ids(self, codes_BFK: Tensor) -> Tensor:
        return codes_BFK + self.layout.vocab_context

    @torch.no_grad()  # an agent and the reward head read the codebooks; they do not move them
    def _pooled(self, context_BN: Tensor) -> Tensor:
        """Code vectors of the last context frame on a coarse grid: [B, V * pooled^2]."""
        vectors_BVss = self.tokenizer.context_vectors(self._per_frame(context_BN)[:, -1:])[:, 0]
        return functional.adaptive_avg_pool2d(vectors_BVss, self.pooled).flatten(1)

    @torch.no_grad()
    def code_features(self, context_BN: Tensor, codes_BFK: Tensor) -> tuple[Tensor, Tensor]:
        """Code vectors of the context, pooled, [B, C], and of each frame, [B, F, E]."""
        vectors_BFE = self.tokenizer.code_vectors(codes_BFK.to(self.device)).flatten(2)
        return self._pooled(context_BN.to(self.device)), vectors_BFE

    def _features(self, context_BN: Tensor, codes_BFK: Tensor, proprio_BFQ: Tensor | None) -> Tensor | None:
        """What the two-hot head reads beside the hidden state, [B, F, E]; the published head reads nothing else."""
        if self.config.heads.reward != "twohot":
            return None
        pooled_BC, vectors_BFE = self.code_features(context_BN, codes_BFK)
        told = [] if proprio_BFQ is None else [proprio_BFQ]
        return torch.cat([pooled_BC[:, None].expand(-1, vectors_BFE.shape[1], -1), vectors_BFE, *told], -1)

    def _engine(self, rows: int) -> TokenEngine:
        if rows not in self._engines:
            if len(self._engines) >= ENGINES:
                del self._engines[next(iter(self._engines))]  # each holds a cache; a state that comes back is rebuilt
            self._engines[rows] = TokenEngine(
                self.tokens, rows=rows, frames=self.spec.max_frames, sampling=self.config.sampling
            )
        return self._engines[rows]

    def _resume(self, state: TensorDict) -> TokenEngine:
        """The engine, holding exactly `state`: a rewind if it is resident, else one prefill from its own codes."""
        engine, wm = self._engine(len(state)), state["wm"]
        frames = wm["codes"].shape[1]
        if engine.resident(wm["ticket"], frames):
            engine.rewind(frames)
        else:
            engine.prefill(
                self._per_frame(wm["context"]), self._ids(wm["codes"]), wm["actions"], tickets_B1=wm["ticket"]
            )
        return engine

    def _next(self, state: TensorDict, action_BA: Tensor, frame: Frame, proprio_BQ: Tensor | None = None) -> TensorDict:
        # an id of the wrong kind (possible with published sampling) reads as the nearest future code (spec 4.2)
        codes_BK = (frame.ids_BK - self.layout.vocab_context).clamp(0, self.layout.vocab_future - 1)
        old = state["wm"]
        wm = {key: old[key] for key in ("context", "pooled", "frames") if key in old.keys()}  # noqa: SIM118
        wm["codes"] = torch.cat([old["codes"], codes_BK[:, None]], 1)
        wm["actions"] = torch.cat([old["actions"], action_BA[:, None]], 1)
        if self.config.proprio:
            if proprio_BQ is None:
                known_BX, push_BQ = action_BA[:, self.spec.action_dim :], self.tokens.push(frame.hidden_BD, action_BA)
                proprio_BQ = proprio.moved(old["proprio"][:, -1], known_BX, push_BQ)
            wm["proprio"] = torch.stack([old["proprio"][:, -1], proprio_BQ.to(self.device)], 1)
        return self._state(wm, frame)

    def _told(self, state: TensorDict, action_BA: Tensor) -> Tensor:
        """What the transformer is told at the next frame: the action, and what is known of the robot where it opens."""
        told = [proprio.known_next(state["wm", "proprio"])] if self.config.proprio else []
        return torch.cat([action_BA.to(self.device), *told], -1)

    def _reward(self, hidden_BD: Tensor, read_BE: Tensor | None) -> Tensor:
        if self.config.heads.reward == "none":  # a model of videos: nobody knows
            return hidden_BD.new_full((len(hidden_BD), 1), torch.nan)
        return self.tokens.reward(hidden_BD, read_BE)[:, None]

    def _state(self, wm: dict[str, Tensor], frame: Frame) -> TensorDict:
        codes_BFK, pooled_BC, rows = wm["codes"], wm["pooled"], len(wm["codes"])
        if codes_BFK.shape[1]:
            vectors_BE = self.tokenizer.code_vectors(codes_BFK[:, -1:]).flatten(1)
        else:
            vectors_BE = pooled_BC.new_zeros(rows, self.layout.codes_future * self.tokenizer.vector_dim)
        parts = {"context": pooled_BC, "codes": vectors_BE, "hidden": frame.hidden_BD}
        told = [wm["proprio"][:, -1]] if self.config.proprio else []
        read_BE = torch.cat([pooled_BC, vectors_BE, *told], -1) if self.config.heads.reward == "twohot" else None
        state = TensorDict({"wm": {**wm, "ticket": frame.tickets_B1}}, batch_size=[rows])
        state["latent"] = torch.cat([*(parts[part] for part in self.config.latent), *told], -1).float()
        if self.config.proprio:
            state["proprio"] = wm["proprio"][:, -1]
        state["reward"] = self._reward(frame.hidden_BD, read_BE)
        state["continue"] = self.tokens.continues(frame.hidden_BD)[:, None]
        return state
