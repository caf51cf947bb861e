# %% [markdown]
# # Solutions of lesson 5

# %% tags=["exercise"]
normed = (-1.0, 1.0)

# %% tags=["exercise"]
inner = 8 * 768 // 3


# %% tags=["exercise"]
class Gentle(nn.Module):
    """x -> x + strength * f(x)"""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.strength * self.f(x)
