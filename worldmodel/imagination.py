"""The half of iVideoGPT that imagines: dream states of fixed shape, and what leads from one to the next.

Nothing is learned here. It sees the tokenizer, the token model and the rollout engine; losses are in `ivideogpt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from worldmodel import proprio
from worldmodel.losses.tokenizer import eval_mode, to_float01
from worldmodel.microbatch import Source
from worldmodel.rollout.engine import Frame, TokenEngine
from worldmodel.rollout.fused import Precision, stamp, version_of
from worldmodel.rollout.pool import EnginePool
from worldmodel.rollout.sampling import SamplingConfig
from worldmodel.spec import ModelSpec, Part, StateKey
from worldmodel.tokenizer.compressive import CompressiveTokenizer
from worldmodel.tokenizer.outputs import DecodedContext
from worldmodel.transformer.token_model import TokenModel

# B rows, t context frames, N codes of a context frame, F future frames, K codes of a future frame, A action, D latent,
# C what is features with a frame (action and proprioception), E feature of the reward head


class Imagination(nn.Module):
    """Tokenizer and token model as a dream: the methods of `worldmodel.api.WorldModel` that take or give states.

    A state is what was observed and imagined; keys and values of the transformer and the decoded context are memos,
    found again by the identity of a state's own tensors and rebuilt where they are not there.
    """

    def __init__(
        self,
        *,
        tokenizer: CompressiveTokenizer,
        tokens: TokenModel,
        spec: ModelSpec,
        pooled: int,
        sampling: SamplingConfig,
        precision: Precision = "float32",
    ) -> None:
        """Args:
        spec: all of it but `state`.
        pooled: side of the grid to which the context's code vectors are averaged.
        sampling: how an imagined frame is drawn.
        precision: of the products that it takes.
        """
        super().__init__()
        self.tokenizer, self.layout, self.tokens, self.pooled = tokenizer, tokenizer.layout, tokens, pooled
        self.spec = replace(spec, state=self._shapes(spec))
        self.version = self.tokenizer_version = 0
        self._pool = EnginePool(tokens, frames=spec.max_frames, sampling=sampling, precision=precision)
        self._decoded: list[tuple[Tensor, float, DecodedContext]] = []  # of a start and of its forks
        self._drawn_with: object = None

    def updated(self, part: Part) -> None:
        """After an optimizer step: versions move, engines forget what they cached under the old weights."""
        self.version += 1
        if part == "tokenizer":
            self.tokenizer_version += 1
        self._pool.forget()

    @property
    def _has_proprio(self) -> bool:
        return "proprio" in self.spec.obs_keys

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are brought there."""
        return next(self.tokens.parameters()).device

    def _codes(self, clip: TensorDict) -> tuple[Tensor, Tensor]:
        if "codes" in clip.keys():  # noqa: SIM118 - a TensorDict has no `in`
            return clip["context_codes"], clip["codes"]
        return self.tokenize(clip["context"], clip["pixels"])

    def _per_frame(self, context_BN: Tensor) -> Tensor:
        return context_BN.long().unflatten(1, (self.layout.context, self.layout.codes_context))  # [B, t, N]

    def _ids(self, codes_BFK: Tensor) -> Tensor:
        return codes_BFK.long() + self.layout.vocab_context

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

    @torch.no_grad()
    def tokenize(self, context_BtCHW: Tensor, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 frames -> (context codes i64 [B, t*N], codes i64 [B, T, K])."""
        frames = (to_float01(context_BtCHW.to(self.device)), to_float01(frames_BTCHW.to(self.device)))
        with eval_mode(self.tokenizer):
            context_codes_BtN, codes_BFK = self.tokenizer.tokenize(*frames)
        return context_codes_BtN.flatten(1), codes_BFK

    @torch.no_grad()
    def detokenize(self, context_BN: Tensor, codes_BFK: Tensor) -> Tensor:
        """Codes of a context [B, t*N] and of frames behind it [B, F, K] -> uint8 frames [B, F, 3, H, W]."""
        with eval_mode(self.tokenizer):
            context = self.tokenizer.decode_context(self._per_frame(context_BN.to(self.device)))
            return _bytes(self.tokenizer.decode_future(context, codes_BFK.to(self.device).long()))

    def codes_of(self, state: TensorDict) -> tuple[Tensor, Tensor]:
        """See `worldmodel.api.Tokenizing.codes_of`."""
        return state["wm", "context"].long(), state["wm", "codes"][:, : self.depth(state)].long()

    @torch.no_grad()
    def encode(self, clip: TensorDict) -> TensorDict:
        """A clip of at least `spec.burn_in` frames (pixels or codes) -> the dream state after its last frame."""
        clip = clip.to(self.device)
        context_BN, codes_BFK = self._codes(clip)
        if (frame := codes_BFK.shape[1]) > self.spec.max_frames:
            raise ValueError(f"a clip may have {self.spec.max_frames} frames behind its context (got {frame})")
        wm = {
            "context": context_BN.to(self._code_dtype),
            "pooled": self._pooled(context_BN),
            "codes": self._filled("codes", codes_BFK),
            "actions": self._filled("actions", clip["action"]),
            "frame": torch.full((len(clip), 1), frame, device=self.device),
        }
        if self._has_proprio:
            wm["proprio"] = self._filled("proprio", clip["proprio"])
        if "context" in clip.keys():  # noqa: SIM118 - a TensorDict has no `in`
            wm["frames"] = clip["context"]  # u8 [B, t, 3, H, W]: only `observe` reads them
        return self._state(wm, frame, self._prefill(self._pool.engine(len(clip)), wm, frame))

    @torch.no_grad()
    def imagine(self, state: TensorDict, action_BA: Tensor, generator: Source | None) -> TensorDict:
        """Next state; codes sampled from `generator`, or the argmax where it is None."""
        engine, frame = self._resume(state)
        condition_BC = self._next_condition(state["wm"], frame, action_BA)
        imagined = engine.sample_frame(condition_BC, engine.uniform(generator))
        return self._next(state, frame, condition_BC, imagined, None)

    @torch.no_grad()
    def observe(self, state: TensorDict, action_BA: Tensor, step: TensorDict) -> TensorDict:
        """Next state; codes read from a real step. The state must come from pixels (its context is needed)."""
        if missing := [key for key in self.spec.obs_keys if key not in step.keys()]:  # noqa: SIM118
            raise ValueError(
                f"observe needs {', '.join(self.spec.obs_keys)} of the real step ({missing[0]} is missing)"
            )
        if ("wm", "frames") not in state.keys(include_nested=True):
            raise ValueError("observe needs the context's pixels: encode a clip with `context` u8, not `context_codes`")
        _, codes_BFK = self.tokenize(state["wm", "frames"], step["pixels"][:, None])
        engine, frame = self._resume(state)
        condition_BC = self._next_condition(state["wm"], frame, action_BA)
        observed = engine.force_frame(condition_BC, self._ids(codes_BFK)[:, 0])
        proprio_BQ = step["proprio"].to(self.device) if self._has_proprio else None
        return self._next(state, frame, condition_BC, observed, proprio_BQ)

    @torch.no_grad()
    def fork(self, state: TensorDict, copies: int) -> TensorDict:
        """See `worldmodel.api.WorldModel.fork`: forks share keys and values, made anew where none are held."""
        if copies == 1:
            return state
        engine, frame, held = self._located(state)
        many, forked = self._pool.engine(len(state) * copies), state.repeat_interleave(copies, 0)
        if held:
            forked["wm", "ticket"] = many.fork(engine, frame, copies)
        else:
            forked["wm", "ticket"] = self._prefill(many, state["wm"], frame, copies=copies).tickets_B1
        if (context := self._drawn(state["wm", "context"])) is not None:
            each = [x.repeat_interleave(copies, 0) for x in (context.recon, *context.features)]
            self._remember(forked["wm", "context"], DecodedContext(each[0], each[1:]))
        return forked

    def depth(self, state: TensorDict) -> int:
        """See `worldmodel.api.WorldModel.depth`."""
        return self._located(state)[1]

    @torch.no_grad()
    def decode(self, state: TensorDict) -> Tensor:
        """The state's newest frame, u8 [B, 3, H, W]. All states of one start share one decoding of its context."""
        frame, wm = self.depth(state), state["wm"]
        with eval_mode(self.tokenizer):
            context = self._decoded_context(wm["context"])
            newest_BCHW = context.recon[:, -1]
            if frame:
                newest_BCHW = self.tokenizer.decode_future(context, wm["codes"][:, frame - 1 : frame].long())[:, 0]
        return _bytes(newest_BCHW)

    def _decoded_context(self, context_BN: Tensor) -> DecodedContext:
        context = self._drawn(context_BN)
        if context is None:
            context = self.tokenizer.decode_context(self._per_frame(context_BN))
            self._remember(context_BN, context)
        return context

    def _drawn(self, context_BN: Tensor) -> DecodedContext | None:
        """What was decoded of this very tensor, if that and the weights are what they were."""
        now = stamp((*self.tokenizer.parameters(), *self.tokenizer.buffers()))
        if now != self._drawn_with:
            self._drawn_with, self._decoded = now, []
        for held, version, context in self._decoded:
            if held is context_BN and version == version_of(context_BN):
                return context
        return None

    def _remember(self, context_BN: Tensor, context: DecodedContext) -> None:
        self._decoded = [*self._decoded[-1:], (context_BN, version_of(context_BN), context)]

    def _located(self, state: TensorDict) -> tuple[TokenEngine, int, bool]:
        """The engine for so many rows, the state's number of frames, and whether the engine holds it."""
        engine, wm = self._pool.engine(len(state)), state["wm"]
        if (issued := engine.issued(wm["ticket"])) is not None:
            return engine, issued, True
        frame = int(wm["frame"][0, 0])  # sync, where this is not the very state that was given out
        return engine, frame, engine.resident(wm["ticket"], frame)

    def _resume(self, state: TensorDict) -> tuple[TokenEngine, int]:
        """The engine, holding exactly `state`: a rewind if it is resident, else one prefill from its own codes."""
        engine, frame, held = self._located(state)
        if held:
            engine.rewind(frame)
        else:
            self._prefill(engine, state["wm"], frame, tickets_B1=state["wm", "ticket"])
        return engine, frame

    def _prefill(self, engine: TokenEngine, wm: Mapping[str, Tensor] | TensorDict, frame: int, **options: Any) -> Frame:
        actions_BFA = wm["actions"][:, :frame]
        features = [proprio.features(wm["proprio"][:, :frame])] if self._has_proprio else []
        condition_BFC = torch.cat([actions_BFA, *features], -1)
        codes_BFK = wm["codes"][:, :frame]
        return engine.prefill(self._per_frame(wm["context"]), self._ids(codes_BFK), condition_BFC, **options)

    def _next_condition(self, wm: TensorDict, frame: int, action_BA: Tensor) -> Tensor:
        """The condition of the next frame: the action, and what is known of the robot where it opens."""
        features = [proprio.next_features(wm["proprio"][:, max(0, frame - 2) : frame])] if self._has_proprio else []
        return torch.cat([action_BA.to(self.device), *features], -1)

    def _next(
        self, state: TensorDict, frame: int, condition_BC: Tensor, newest: Frame, proprio_BQ: Tensor | None
    ) -> TensorDict:
        """The state one frame on, in buffers of its own: others may go on from `state`."""
        wm, action_dim = dict(state["wm"].items()), self.spec.action_dim
        # an id of the wrong kind (possible with published sampling) reads as the nearest future code (spec 4.2)
        codes_BK = (newest.ids_BK - self.layout.vocab_context).clamp(0, self.layout.vocab_future - 1)
        written = {"codes": codes_BK, "actions": condition_BC[:, :action_dim]}
        if self._has_proprio and proprio_BQ is None:
            acceleration_BQ = self.tokens.acceleration(newest.hidden_BD, condition_BC)
            proprio_BQ = proprio.integrate(wm["proprio"][:, frame - 1], condition_BC[:, action_dim:], acceleration_BQ)
        if proprio_BQ is not None:
            written["proprio"] = proprio_BQ
        for key, value in written.items():
            wm[key] = wm[key].clone()
            wm[key][:, frame] = value
        wm["frame"] = wm["frame"] + 1
        return self._state(wm, frame + 1, newest)

    def _reward(self, hidden_BD: Tensor, read_BE: Tensor | None) -> Tensor:
        if self.tokens.heads.reward == "none":  # a model of videos: nobody knows
            return hidden_BD.new_full((len(hidden_BD), 1), torch.nan)
        return self.tokens.reward(hidden_BD, read_BE)[:, None]

    @property
    def _code_dtype(self) -> torch.dtype:
        """The smallest in which every code fits."""
        largest = max(self.layout.vocab_context, self.layout.vocab_future) - 1
        return torch.int16 if largest <= torch.iinfo(torch.int16).max else torch.int32

    def _shapes(self, spec: ModelSpec) -> dict[StateKey, tuple[tuple[int, ...], torch.dtype]]:
        """Of everything in a dream state (`worldmodel.spec.ModelSpec.state`)."""
        layout, frames, floats = self.layout, spec.max_frames, torch.float32
        shapes: dict[StateKey, tuple[tuple[int, ...], torch.dtype]] = {
            ("wm", "context"): ((layout.context * layout.codes_context,), self._code_dtype),
            ("wm", "pooled"): ((self.tokenizer.vector_dim * self.pooled**2,), floats),
            ("wm", "codes"): ((frames, layout.codes_future), self._code_dtype),
            ("wm", "actions"): ((frames, spec.action_dim), floats),
            ("wm", "frame"): ((1,), torch.int64),
            ("wm", "ticket"): ((1,), torch.int64),
            "latent": ((spec.latent_dim,), floats),
            "reward": ((1,), floats),
            "continue": ((1,), floats),
        }
        if "proprio" in spec.obs_keys:
            known = spec.latent["proprio"]
            shapes |= {("wm", "proprio"): ((frames, known), floats), "proprio": ((known,), floats)}
        return shapes

    def _filled(self, key: str, value_BF: Tensor) -> Tensor:
        """What is known of the first frames, [B, max_frames, ...], the others 0."""
        shape, dtype = self.spec.state["wm", key]
        held = value_BF.new_zeros(len(value_BF), *shape, dtype=dtype)
        held[:, : value_BF.shape[1]] = value_BF
        return held

    def _state(self, wm: dict[str, Tensor], frame: int, newest: Frame) -> TensorDict:
        pooled_BC, rows, at = wm["pooled"], len(wm["codes"]), slice(frame - 1, frame)
        if frame:
            vectors_BE = self.tokenizer.code_vectors(wm["codes"][:, at].long()).flatten(1)
        else:
            vectors_BE = pooled_BC.new_zeros(rows, self.layout.codes_future * self.tokenizer.vector_dim)
        parts = {"context": pooled_BC, "codes": vectors_BE, "hidden": newest.hidden_BD}
        if self._has_proprio:
            parts["proprio"] = wm["proprio"][:, frame - 1]
        read = [parts[name] for name in ("context", "codes", "proprio") if name in parts]
        read_BE = torch.cat(read, -1) if self.tokens.heads.reward == "twohot" else None
        state = TensorDict({"wm": {**wm, "ticket": newest.tickets_B1}}, batch_size=[rows])
        state["latent"] = torch.cat([parts[part] for part in self.spec.latent], -1).float()
        if self._has_proprio:
            state["proprio"] = parts["proprio"]
        state["reward"] = self._reward(newest.hidden_BD, read_BE)
        state["continue"] = self.tokens.continues(newest.hidden_BD)[:, None]
        return state


def _bytes(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as uint8."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)
