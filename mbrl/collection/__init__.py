"""Playing episodes into a data set."""
