"""Agents: they act in the real world and learn however they like; of a world model they see only a Dream."""
