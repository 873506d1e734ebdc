"""Benchmarks: suites of tasks, a queue of runs on one machine, their results, and statistics over tasks and seeds."""
