# %% [markdown]
# # Solutions of lesson 12

# %% tags=["exercise"]
bits_of_an_eighth = 3

# %% tags=["exercise"]
place = 1


# %% tags=["exercise"]
def entropy(weights):
    """(..., T) of weights that add up to 1 -> (...), in bits"""
    return -torch.xlogy(weights, weights).sum(-1) / math.log(2)
