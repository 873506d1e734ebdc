"""The pre-trained networks of the metrics: where they lie, and how their archives are converted."""
