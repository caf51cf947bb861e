# %% [markdown]
# # Solutions of lesson 9

# %% tags=["exercise"]
can_tell_apart = "first words"


# %% tags=["exercise"]
def positions_of(real):
    """(B, T) of 0 and 1 -> (B, T): how many real tokens precede each one; padding counts as 0"""
    return (real.cumsum(-1) - 1).clamp(min=0)
