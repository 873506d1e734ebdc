"""Models in the published layout: checkpoints on disk -> our networks, and their facade."""
