# %% [markdown]
# # Solutions of lesson 6

# %% tags=["exercise"]
untied = 124_439_808 + 50257 * 768


# %% tags=["exercise"]
def training_bytes(parameters):
    """Number of parameters -> bytes"""
    return 4 * 4 * parameters


# %% tags=["exercise"]
def split_qkv(matrix):
    """(3C, C) -> three matrices (C, C): query, key, value"""
    return matrix.chunk(3, dim=0)
