"""A look inside: attention, next-token probabilities, what a model costs, and what its run looked like."""
