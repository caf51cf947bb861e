"""Publishing on the Hub: model cards with measured results, secret scanning, uploads."""
