"""Around HF Trainer: arguments and recipes, callbacks, optimizers, plots, and what a finished run leaves behind."""
