"""The token model: a decoder-only transformer over token strings, with actions in and rewards out."""

from worldmodel.transformer.llama import Llama, TransformerConfig
from worldmodel.transformer.token_model import HeadConfig, TokenModel, TokenOutput

__all__ = ["HeadConfig", "Llama", "TokenModel", "TokenOutput", "TransformerConfig"]
