"""Data preparation, from files to training rows: one module per kind of training."""
