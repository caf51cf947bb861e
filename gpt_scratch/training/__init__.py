"""Training with Trainer: arguments and recipes, callbacks, optimizers, checkpoints, and the files of a finished run."""
