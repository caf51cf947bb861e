"""Towards the Hub: model cards that hold only what was measured."""
