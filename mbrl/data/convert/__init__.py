"""Foreign archives of video as data sets of ours: one module reads one kind, `run.py` writes what any of them reads."""
