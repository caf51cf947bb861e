"""Weights from other formats to this package and back: one weight map a format, read lazily, written whole, verified."""
