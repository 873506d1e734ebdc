"""Frames <-> codes: the compressive tokenizer and the networks it is made of."""

from worldmodel.tokenizer.compressive import CompressiveTokenizer, TokenizerConfig, TokenizerOutput

__all__ = ["CompressiveTokenizer", "TokenizerConfig", "TokenizerOutput"]
