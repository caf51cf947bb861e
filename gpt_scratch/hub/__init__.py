"""Publishing on the Hub: model cards that hold only what was measured, checks for secrets, uploads."""
