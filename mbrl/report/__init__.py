"""One page of plots about finished or running trainings."""
