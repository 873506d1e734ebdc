"""What a run leaves behind: checkpoints, tables of numbers, pictures."""
