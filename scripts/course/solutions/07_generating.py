# %% [markdown]
# # Solutions of lesson 7

# %% tags=["exercise"]
kept = 2

# %% tags=["exercise"]
cache_bytes = 2 * 12 * 1024 * 768 * 4


# %% tags=["exercise"]
def min_p(scores, share):
    """Scores (..., V) -> probabilities (..., V), 0 for what is cut off"""
    probabilities = scores.softmax(-1)
    too_small = probabilities < share * probabilities.amax(-1, keepdim=True)
    return scores.masked_fill(too_small, -torch.inf).softmax(-1)
