"""Speed and memory compared with other implementations, on the same work in the same run."""
