"""iVideoGPT as a WorldModel: the tokenizer and the token model put together, and their losses.

Composition only: networks live in their own files, and what is imagined with them in `imagination.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from worldmodel import proprio
from worldmodel.imagination import Imagination
from worldmodel.layout import TokenLayout
from worldmodel.losses.parts import AuxiliaryHeads, LossConfig, reward_targets
from worldmodel.losses.tokenizer import TokenizerObjective
from worldmodel.microbatch import MicroBatch, uniform
from worldmodel.rollout.fused import Precision
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.seeds import Seeds, generator_on, seeded_globally
from worldmodel.spec import CodeSpec, ContextMode, EnvSpec, ModelSpec, ObsKey, Part
from worldmodel.tokenizer.compressive import CompressiveTokenizer, TokenizerConfig
from worldmodel.transformer.decoding import DecodingConfig
from worldmodel.transformer.llama import TransformerConfig
from worldmodel.transformer.token_model import HeadConfig, TokenModel

# B rows, t context frames, N codes of a context frame, F future frames, K codes of a future frame, A action, D latent

LATENT_PARTS = ("context", "codes", "hidden")
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
        rollout_precision: of the matrix products that read and imagine frames, training apart; `bfloat16` and `int8`
            read two and one bytes a weight instead of four, and round (`worldmodel.rollout.fused`).
        proprio: whether the model is robot what the robot knows of itself and predicts it (`worldmodel.proprio`).
    """

    context: ContextMode
    burn_in: int
    max_frames: int
    embedding: Literal["table", "levels"]
    latent: tuple[str, ...]
    heads: HeadConfig
    losses: LossConfig
    decoding: DecodingConfig
    sampling: SamplingConfig
    rollout_precision: Precision
    proprio: bool
    parts: ClassVar[tuple[Part, ...]] = ("tokenizer", "dynamics")

    @property
    def obs_keys(self) -> tuple[ObsKey, ...]:
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
        if self.rollout_precision not in get_args(Precision):
            raise ValueError(f"rollout_precision must be float32, bfloat16 or int8 (got {self.rollout_precision})")
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


class IVideoGPT(Imagination):
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
        layout, pooled = tokenizer.layout, min(CONTEXT_POOL, tokenizer.config.side)
        require_positions(layout, config.max_frames, transformer)
        widths = latent_widths(tokenizer, pooled, transformer, proprio_dim)
        tokens = TokenModel(
            transformer,
            layout,
            condition_dim=action_dim + proprio.WIDTH * proprio_dim,
            heads=config.heads,
            feature_dim=widths["context"] + widths["codes"] + proprio_dim,
            continues=terminates,
            proprio_dim=proprio_dim,
            decoding=config.decoding,
            features_VJ=tokenizer.id_features() if config.embedding == "levels" else None,
            generator=generator,
        )
        spec = ModelSpec(
            image=tokenizer.config.image,
            context_frames=layout.context,
            action_dim=action_dim,
            max_frames=config.max_frames,
            context=config.context,
            burn_in=config.burn_in,
            obs_keys=config.obs_keys,
            latent={part: widths[part] for part in config.latent + (("proprio",) if config.proprio else ())},
            parts=config.parts,
            codes=codes_of(layout),
            rewards=config.heads.reward != "none",
        )
        super().__init__(
            tokenizer=tokenizer,
            tokens=tokens,
            spec=spec,
            pooled=pooled,
            sampling=config.sampling,
            precision=config.rollout_precision,
        )
        self.config, self.auxiliary = config, None
        if config.losses.aux_coef > 0:
            self.auxiliary = AuxiliaryHeads(
                codes=layout.codes_future,
                vector_dim=tokenizer.vector_dim,
                context_dim=widths["context"],
                action_dim=action_dim,
            )
        self.objective = TokenizerObjective(
            config=config.losses, tokenizer=tokenizer, auxiliary=self.auxiliary, pooled=pooled
        )

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
            return self._dynamics_losses(
                clip, generator_on(generator, self.device), generator_on(own, self.device), micro
            )

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
        num_observed = (
            1 if self.config.context == "first_frame" else 0
        )  # the clip's first frame is observed, not predicted
        reward_BF, known_BF = reward_targets(clip["reward"], clip["reward_mask"], cfg.reward_target)
        action_BFA, proprio_BFQ, target_BFQ = clip["action"], None, None
        if self.config.proprio:
            features_BFX = proprio.add_noise(proprio.features(clip["proprio"]), noise)
            action_BFA = torch.cat([action_BFA, features_BFX], -1)
            target_BFQ = proprio.acceleration_target(clip["proprio"], features_BFX)
            proprio_BFQ = proprio.add_noise(clip["proprio"], noise, width=1)
        losses = self.tokens.losses(
            self._per_frame(before_BN),
            codes_BFK,
            read_BFK=read_BFK,
            actions_BFA=action_BFA,
            known_BFK=self.tokens.decoding.shown(codes_BFK.shape, noise, device=self.device),
            features_BFE=self._features(context_BN, read_BFK, proprio_BFQ),
            acceleration_BFQ=target_BFQ,
            burn_in=self.config.burn_in,
            reward_BF=reward_BF,
            reward_mask_BF=known_BF,
            continue_BF=clip["continue"],
            num_observed=num_observed,
            generator=dropout,
        )
        if "reward" in losses:
            losses["reward"] = cfg.reward * losses["reward"] * self._known_scale(known_BF, micro)
        metrics = {f"dynamics/{name}": value.detach() for name, value in losses.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **metrics}

    def _known_scale(self, known_BF: Tensor, micro: MicroBatch) -> Tensor:
        whole = reward_targets(micro.whole["reward"], micro.whole["reward_mask"], self.config.losses.reward_target)[1]
        return micro.scale(known_BF, whole.to(self.device))

    def parameters_of(self, part: Part) -> dict[str, nn.Parameter]:
        """Trainable parameters of one part, by name."""
        prefixes = ("tokenizer.", "auxiliary.") if part == "tokenizer" else ("tokens.",)
        return {name: p for name, p in self.named_parameters() if name.startswith(prefixes) and p.requires_grad}

    def _features(self, context_BN: Tensor, codes_BFK: Tensor, proprio_BFQ: Tensor | None) -> Tensor | None:
        """What the two-hot head reads beside the hidden state, [B, F, E]; the published head reads nothing else."""
        if self.config.heads.reward != "twohot":
            return None
        pooled_BC, vectors_BFE = self.code_features(context_BN, codes_BFK)
        robot = [] if proprio_BFQ is None else [proprio_BFQ]
        return torch.cat([pooled_BC[:, None].expand(-1, vectors_BFE.shape[1], -1), vectors_BFE, *robot], -1)


def latent_widths(
    tokenizer: CompressiveTokenizer, pooled: int, transformer: TransformerConfig, proprio_dim: int
) -> dict[str, int]:
    """Numbers in each part of what an agent may read."""
    return {
        "context": tokenizer.vector_dim * pooled**2,
        "codes": tokenizer.vector_dim * tokenizer.layout.codes_future,
        "hidden": transformer.hidden,
        "proprio": proprio_dim,
    }


def require_positions(layout: TokenLayout, frames: int, transformer: TransformerConfig) -> None:
    """Raises: ValueError if the transformer has too few positions for that many future frames."""
    if layout.length(frames) > transformer.positions:
        raise ValueError(
            f"max_frames={frames} needs {layout.length(frames)} positions, "
            f"the transformer has {transformer.positions}: lower worldmodel.max_frames or raise its positions"
        )


def codes_of(layout: TokenLayout) -> CodeSpec:
    """What others may know of the codes."""
    return CodeSpec(
        context=layout.codes_context,
        future=layout.codes_future,
        vocab_context=layout.vocab_context,
        vocab_future=layout.vocab_future,
    )
