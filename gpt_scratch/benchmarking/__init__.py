"""Speed and memory against what its users would pick instead, on the same work in the same run."""
