# %% [markdown]
# # Solutions of lesson 1

# %% tags=["exercise"]
second = "hug"


# %% tags=["exercise"]
def decode(ids, content):
    """ids -> text; `content` gives the bytes of each id"""
    return b"".join(content[number] for number in ids).decode(errors="replace")
