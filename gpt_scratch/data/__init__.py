"""Text to training rows: one module for each kind of training."""
