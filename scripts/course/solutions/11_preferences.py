# %% [markdown]
# # Solutions of lesson 11

# %% tags=["exercise"]
loss_at_start = math.log(2)

# %% tags=["exercise"]
four_advantages = [1, -1, -1, 1]


# %% tags=["exercise"]
def reward_of_sum(question, answer):
    """Two texts -> 1.0 or 0.0"""
    import re

    first, second = map(int, re.findall(r"\d+", question))
    found = re.findall(r"\d+", answer)
    return float(bool(found) and int(found[-1]) == first + second)
