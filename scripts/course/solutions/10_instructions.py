# %% [markdown]
# # Solutions of lesson 10

# %% tags=["exercise"]
lora_numbers = 8 * (768 + 3072)

# %% tags=["exercise"]
eight_labels = [-100, -100, -100, 8, 9, 0, -100, -100]


# %% tags=["exercise"]
def merged(lora):
    """LoRA -> weight (out, in)"""
    return lora.linear.weight + lora.scale * lora.B @ lora.A
