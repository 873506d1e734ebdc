"""What a world model and an agent are worth, measured beside training; moves no weights."""
