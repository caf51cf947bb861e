"""Model inspection: attention maps, next-token probabilities, model cost, and plots of training runs."""
