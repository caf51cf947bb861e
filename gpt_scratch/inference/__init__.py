"""Loading, generation, chat, classification and serving of trained models."""
