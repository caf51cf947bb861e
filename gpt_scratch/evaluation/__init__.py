"""Measuring models: perplexity, classification metrics, judged replies."""
