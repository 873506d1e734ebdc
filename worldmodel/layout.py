"""The token string of a clip: which id means what and where everything sits.

Knows integers only: no tensors, no frames, no networks. Every other module asks here instead of counting for itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Ids and positions of `c1 [scf c2] .. [scf ct]  sdf d1  sdf d2 .. sdf dF` (spec section 4).

    A context frame is `codes_context` codes, a future frame is one `sdf` (which carries the action that leads into the
    frame) followed by `codes_future` codes. There is no leading `scf`.

    >>> published = TokenLayout(context=2)
    >>> published.length(14), TokenLayout(context=1).length(15), published.length(10)
    (751, 511, 683)
    >>> published.prelude, published.scf, published.sdf, published.vocab
    (513, 16384, 16385, 16386)
    >>> published.sdf_position(0), published.reward_position(0), published.sdf_position(1)
    (513, 529, 530)
    """

    context: int
    codes_context: int = 256
    codes_future: int = 16
    vocab_context: int = 8192
    vocab_future: int = 8192

    @property
    def scf(self) -> int:
        """Id that opens the second, third, ... context frame."""
        return self.vocab_context + self.vocab_future

    @property
    def sdf(self) -> int:
        """Id that opens a future frame; the last id of the vocabulary."""
        return self.scf + 1

    @property
    def vocab(self) -> int:
        """Number of ids: context codes, future codes and the two separators."""
        return self.sdf + 1

    @property
    def prelude(self) -> int:
        """Positions taken by the context frames (P in the spec)."""
        return (self.codes_context + 1) * self.context - 1

    @property
    def stride(self) -> int:
        """Positions taken by one future frame: its `sdf` and its codes."""
        return self.codes_future + 1

    def sdf_position(self, frame: int) -> int:
        """Position of the `sdf` that opens future frame `frame` (0-based)."""
        return self.prelude + self.stride * frame

    def reward_position(self, frame: int) -> int:
        """Position of the last code of future frame `frame`: there the reward and the feature are read."""
        return self.sdf_position(frame) + self.codes_future

    def length(self, frames: int) -> int:
        """Positions of the whole string with `frames` future frames."""
        return self.sdf_position(frames)

    def frames(self, length: int) -> int:
        """Number of future frames in a string of `length` positions.

        Raises: ValueError if no whole number of frames has that length.
        """
        frames, rest = divmod(length - self.prelude, self.stride)
        if rest or frames < 0:
            raise ValueError(
                f"{length} tokens are not {self.prelude} context tokens plus a whole number of "
                f"{self.stride}-token frames"
            )
        return frames
