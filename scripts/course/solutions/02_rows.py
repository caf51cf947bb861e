# %% [markdown]
# # Solutions of lesson 2

# %% tags=["exercise"]
how_many = (1020 - 128) // 64 + 1


# %% tags=["exercise"]
def inputs_and_targets(batch, pad):
    """(B, T) -> inputs (B, T - 1), targets (B, T - 1)"""
    inputs, targets = batch[:, :-1], batch[:, 1:]
    return inputs, targets.masked_fill(targets == pad, -100)
