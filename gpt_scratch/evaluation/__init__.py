"""Evaluation: perplexity, classification metrics, replies and their judge."""
