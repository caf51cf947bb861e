"""Conversion of checkpoints between this package and other formats, with one weight map per format, and verification."""
