"""Another GPT for the benchmark, as a user writes it."""

RIVAL = """
import torch
class Rival(torch.nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(sizes.vocab_size))
    def forward(self, ids, labels):
        return torch.nn.functional.cross_entropy(self.weight.expand(labels[:, 1:].numel(), -1), labels[:, 1:].flatten())
def build(sizes):
    return Rival(sizes)
class WithItsOptimizer(Rival):
    def configure_optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)
"""
