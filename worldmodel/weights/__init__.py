"""Published checkpoints on disk -> our networks."""
