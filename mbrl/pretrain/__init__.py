"""Pre-training of the world model on data sets: the loop, what it measures, its folder, and transfer to a new task."""
