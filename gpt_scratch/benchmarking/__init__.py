"""Benchmarks of speed and memory against other implementations, with the same workload in the same process."""
