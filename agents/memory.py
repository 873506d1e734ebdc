"""What a latent agent carries between real steps: the frames and actions from which the dream state is encoded anew.

Knows a dream's `encode` and its spec; nothing of policies.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.api import Dream, Memory


class LatentFilter:
    """Turns real frames into the latent that imagination starts from: a clip of the same form, encoded at each step.

    Stateless on purpose: nothing depends on a cache, so a resumed run sees bit-identical features, and a policy meets
    in the world what it met at the start of its dreams.

    The memory is a TensorDict [E] of plain tensors (t context frames, w = `spec.burn_in`): `context` u8 [t,3,H,W]
    where the model reads pixels; each key of `spec.obs_keys`, [w, ...] of the last real steps; `actions` f32 [w,A],
    what led into each of them; `filled` i64 [1], how many of the w are there (they sit at the end; the rest repeats the
    first one); `action` f32 [A], which leads into the next frame: the agent sets it, and may keep things of its own
    beside it.

    Where `is_init`, a row starts anew: context and window are the first frame, repeated. Later, the context stays
    (context `first_frame`) or takes the frames that leave the window (context `sliding`).
    """

    def __init__(self, dream: Dream) -> None:
        spec = dream.spec
        if spec.context == "first_frame" and spec.burn_in < 1:
            raise ValueError("burn_in must be >= 1 where the context is the episode's first frames (got 0)")
        self._dream, self._spec = dream, spec

    def see(self, td: TensorDict, memory: Memory) -> TensorDict:
        """The memory after the real step `td` [E] (`spec.obs_keys`, `is_init`); None: every row starts anew."""
        if "pixels" in self._spec.obs_keys:
            self._check_frames(td["pixels"])
        fresh = self._fresh(td)
        if memory is None:
            return fresh
        if memory.batch_size != fresh.batch_size:
            rows = f"{memory.batch_size[0]} of memory, {fresh.batch_size[0]} of what is seen"
            raise ValueError(f"memory and the step must have the same rows (got {rows})")
        continued = self._continued(td, memory)
        init_E = td["is_init"].reshape(-1)
        for key, begun in fresh.items():
            continued[key] = torch.where(init_E.reshape(-1, *[1] * (begun.ndim - 1)), begun, continued[key])
        return continued

    def _check_frames(self, frame_ECHW: Tensor) -> None:
        shape = (3, self._spec.image, self._spec.image)
        if frame_ECHW.dtype != torch.uint8 or frame_ECHW.ndim != 4 or frame_ECHW.shape[1:] != shape:
            got = f"{frame_ECHW.dtype} {tuple(frame_ECHW.shape)}"
            raise ValueError(f"pixels must be uint8 [E, 3, {shape[1]}, {shape[2]}] (got {got})")

    def starts(self, memory: TensorDict, *, device: torch.device | str) -> Iterator[tuple[Tensor, TensorDict]]:
        """Rows i64 [n] of `memory`, and the dream states [n] after their newest frame, encoded on `device`.

        Rows whose windows are filled alike are encoded together, so a short window is never padded with frames that
        were not there. All rows of Meta-World fill alike; after a partial reset it is one call for each length.
        """
        filled_E = memory["filled"][:, 0]
        for length in filled_E.unique():  # sync
            rows = torch.nonzero(filled_E == length)[:, 0]
            yield rows, self._dream.encode(self.clip(memory[rows]).to(device))

    def latent(self, memory: TensorDict, *, device: torch.device | str) -> Tensor:
        """The latent [E, D] after the newest frame of `memory`, encoded on `device`."""
        rows_of, states = zip(*self.starts(memory, device=device), strict=True)
        back_E = torch.cat(rows_of).argsort()
        return torch.cat([state["latent"] for state in states])[back_E.to(device)]

    def _fresh(self, td: TensorDict) -> TensorDict:
        spec, rows, device = self._spec, len(td), td["is_init"].device
        memory: dict[str, Tensor] = {key: _repeated(td[key], spec.burn_in) for key in spec.obs_keys}
        if "pixels" in spec.obs_keys:
            memory["context"] = _repeated(td["pixels"], spec.context_frames)
        memory["actions"] = torch.zeros(rows, spec.burn_in, spec.action_dim, device=device)
        memory["filled"] = torch.full((rows, 1), min(1, spec.burn_in), device=device)
        memory["action"] = torch.zeros(rows, spec.action_dim, device=device)
        return TensorDict(memory, batch_size=[rows])

    def _continued(self, td: TensorDict, memory: TensorDict) -> TensorDict:
        after, spec = memory.copy(), self._spec
        if "pixels" in spec.obs_keys and spec.context == "sliding":  # the window's oldest frame becomes context
            history = torch.cat([memory["context"], memory["pixels"], td["pixels"][:, None]], 1)[:, 1:]
            after["context"] = history[:, : spec.context_frames].contiguous()
        now: dict[str, Tensor] = {key: td[key] for key in spec.obs_keys}
        now["actions"] = memory["action"]
        for key, newest in now.items():
            after[key] = torch.cat([memory[key], newest[:, None]], 1)[:, 1:].contiguous()
        after["filled"] = (memory["filled"] + 1).clamp(max=spec.burn_in)
        return after

    def clip(self, memory: TensorDict) -> TensorDict:
        """The clip [E] that `memory` stands for; its rows must be filled alike."""
        begin = self._spec.burn_in - int(memory["filled"][0])
        clip: dict[str, Tensor] = {key: memory[key][:, begin:] for key in self._spec.obs_keys}
        clip["action"] = memory["actions"][:, begin:]
        if "pixels" in self._spec.obs_keys:
            clip["context"] = memory["context"]
        return TensorDict(clip, batch_size=memory.batch_size)


def _repeated(value_E: Tensor, times: int) -> Tensor:
    """[E, ...] -> [E, times, ...]."""
    return value_E[:, None].expand(-1, times, *value_E.shape[1:]).contiguous()


def without_last(clip: TensorDict) -> TensorDict:
    """A clip (worldmodel.spec) without its last frame; the context stays."""
    context = ("context", "context_codes")
    kept = {key: value if key in context else value[:, :-1] for key, value in clip.items()}
    return TensorDict(kept, batch_size=clip.batch_size, device=clip.device)


class FrameStack:
    """What a pixel agent carries between steps: the newest frames, oldest first; an episode's first is repeated."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def see(self, td: TensorDict, memory: Memory) -> TensorDict:
        """The memory [E] (`frames` u8 [3*S, H, W]) after the step `td` [E]; None or `is_init`: an episode begins.

        In a dream, where no episode begins, `td` has no `is_init`.
        """
        newest_ECHW = td["pixels"]
        frames_ECHW = newest_ECHW.repeat(1, self.frames, 1, 1)
        if memory is not None:
            pushed_ECHW = torch.cat([memory["frames"], newest_ECHW], 1)[:, 3:]
            if (init := td.get("is_init", None)) is None:
                frames_ECHW = pushed_ECHW
            else:
                frames_ECHW = torch.where(init.reshape(-1, 1, 1, 1), frames_ECHW, pushed_ECHW)
        return TensorDict({"frames": frames_ECHW}, batch_size=td.batch_size)

    def before(self, frames_BFCHW: Tensor) -> TensorDict:
        """The memory [B] before the last of these F successive frames, u8 [B, F, 3, H, W], is seen."""
        memory = None
        for frame_BCHW in frames_BFCHW[:, :-1].unbind(1):
            memory = self.see(TensorDict({"pixels": frame_BCHW}, batch_size=[len(frame_BCHW)]), memory)
        first = TensorDict({"pixels": frames_BFCHW[:, 0]}, batch_size=[len(frames_BFCHW)])
        return self.see(first, None) if memory is None else memory
