"""Typical wrong answers to the exercises of the course: by lesson, for each exercise the code and words of the reply that helps."""

WRONG_ANSWERS: dict[int, list[tuple[str, str]]] = {
    1: [
        ("second = 'ug'", "`u g` is left in `pug` only"),
        ("second = 'pu'", "count the pairs again"),
        ("def decode(ids, content): return ''.join(content[i].decode() for i in ids)", "cannot be decoded by itself"),
        ("def decode(ids, content): return ''.join(content[i].decode(errors='replace') for i in ids)", "put together first"),
        ("def decode(ids, content): return b''.join(content[i] for i in ids)", "these are bytes"),
        ("def decode(ids, content): return ' '.join(['Ein', 'Bär'])", "came back as"),
    ],
    2: [
        ("how_many = 13", "the row that starts at 0"),
        ("how_many = 15", "must leave room for 128"),
        ("how_many = 7", "that is stride 128"),
        ("how_many = 1020", "starts are 0, 64, 128"),
        ("def inputs_and_targets(batch, pad): return batch, batch", "shifted against each other"),
        ("def inputs_and_targets(batch, pad): return batch[:, :-1], batch[:, 1:]", "would learn to write padding"),
        (
            "def inputs_and_targets(batch, pad):\n    batch = batch.masked_fill(batch == pad, -100)\n    return batch[:, :-1], batch[:, 1:]",
            "-100 is no id",
        ),
        (
            "def inputs_and_targets(batch, pad):\n    batch[batch == pad] = -100\n    return batch[:, :-1], batch[:, 1:]",
            "clone the targets",
        ),
        ("def inputs_and_targets(batch, pad): return batch[:, :-1], batch[:, :-1] + 1", "the targets are"),
    ],
    3: [
        ("turned = (4, -3)", "that is clockwise"),
        ("turned = (4, 3)", "mirrors the point"),
        ("turned = (-3, -4)", "put a = 3, b = 4"),
        ("rows_with_gradient = 8", "is still one row"),
        ("rows_with_gradient = 3", "row 0 counts too"),
        ("rows_with_gradient = 9", "count the different ids"),
        ("def embed_from(embedding, ids, start): return embedding(ids)", "these are positions 0 and 1"),
        (
            "def embed_from(embedding, ids, start): return embedding.tokens[ids] + embedding.positions[start]",
            "start .. start + T",
        ),
        (
            "def embed_from(embedding, ids, start): return embedding.tokens[ids].repeat(1, 2, 1) + embedding.positions[:4]",
            "take as many positions",
        ),
    ],
    4: [
        ("score_of_it = 5", "the score of 'chased' with itself"),
        ("score_of_it = 3", "multiply the numbers in pairs"),
        ("def window_weights(scores, window): return softmax(scores).tril().triu(1 - window)", "mask the scores before softmax"),
        ("def window_weights(scores, window): return causal_weights(scores)", "a window of 2 holds only token 3 and token 2"),
        ("def window_weights(scores, window): return softmax(scores)", "a token sees a later one"),
        ("def window_weights(scores, window): return torch.eye(4)", "some token inside the window is not seen"),
        ("numbers = 4 * 768 * 768 + 768", "plain multi-head attention"),
        ("numbers = 2 * 768 * 768 + 2 * 768 * 256", "has a bias of 768"),
        ("numbers = 1", "four matrices and one bias"),
    ],
    5: [
        ("normed = (-0.7071, 0.7071)", "divides by C = 2"),
        ("normed = (0.4472, 1.3416)", "that is RMS norm"),
        ("normed = (0, 1)", "take the mean, 2, away"),
        ("inner = 3072", "there are three matrices"),
        ("inner = 1536", "it has three"),
        ("inner = 768", "solve 3 * 768"),
        (
            "class Gentle(nn.Module):\n    def __init__(self, f):\n        super().__init__()\n        self.f, self.strength = f, 0.0\n"
            "    def forward(self, x):\n        return x + self.strength * self.f(x)",
            "make it an nn.Parameter",
        ),
        (
            "class Gentle(nn.Module):\n    def __init__(self, f):\n        super().__init__()\n"
            "        self.f, self.strength = f, nn.Parameter(torch.ones(()))\n"
            "    def forward(self, x):\n        return x + self.strength * self.f(x)",
            "does strength start at 0",
        ),
        (
            "class Gentle(nn.Module):\n    def __init__(self, f):\n        super().__init__()\n"
            "        self.f, self.strength = f, nn.Parameter(torch.zeros(()))\n"
            "    def forward(self, x):\n        return x + self.strength.detach() * self.f(x) + 0 * self.strength",
            "strength gets no gradient",
        ),
    ],
    6: [
        ("untied = 124_439_808 - 50257 * 768", "in addition"),
        ("untied = 124_439_808 + (50257 + 1024) * 768", "positions are only read at the input"),
        ("untied = 124_439_808", "add the size of that matrix"),
        ("def training_bytes(parameters): return 4 * parameters", "training keeps a gradient"),
        ("def training_bytes(parameters): return 12 * parameters", "three numbers for each parameter"),
        ("def training_bytes(parameters): return 8 * parameters", "4,000 numbers of 4 bytes"),
        ("def split_qkv(matrix): return matrix[::3], matrix[1::3], matrix[2::3]", "every third row"),
        ("def split_qkv(matrix): return matrix.chunk(3, dim=1)", "cut along the rows"),
        ("def split_qkv(matrix): return matrix.chunk(3)[::-1]", "query, key, value, from top to bottom"),
    ],
    7: [
        ("kept = 1", "must *reach* 0.7"),
        ("kept = 3", "the smallest that does"),
        ("kept = 4", "add the probabilities up"),
        ("cache_bytes = 12 * 1024 * 768 * 4", "keys *and* values"),
        ("cache_bytes = 2 * 1024 * 768 * 4", "keys and values of its own"),
        ("cache_bytes = 12 * 1024 * 768 // 2", "2 vectors of 768 numbers"),
        (
            "def min_p(scores, share):\n    p = scores.softmax(-1)\n    return p * (p >= share * p.amax(-1, keepdim=True))",
            "must add up to 1 again",
        ),
        (
            "def min_p(scores, share):\n    p = scores.softmax(-1)\n    return scores.masked_fill(p < share * p.max(), 0.0).softmax(-1)",
            "a score of 0 is not 'never'",
        ),
        (
            "def min_p(scores, share): return scores.masked_fill(scores.softmax(-1) < share, -torch.inf).softmax(-1)",
            "not with share itself",
        ),
    ],
    8: [
        ("perplexity = 5", "the mean of 2 and 8"),
        ("perplexity = 3.2", "mean of the probabilities"),
        ("perplexity = math.log(4)", "that is the mean loss"),
        ("perplexity = 16", "e to their mean"),
        (
            "def accumulate(model, batch, parts):\n    for part in batch.chunk(parts):\n        loss_of(model, part).backward()\n    return True",
            "4 times too large",
        ),
        (
            "def accumulate(model, batch, parts):\n    (loss_of(model, batch[:2]) / parts).backward()\n    return True",
            "each row must count once",
        ),
        ("def accumulate(model, batch, parts): return loss_of(model, batch) is not None", "there is no gradient"),
    ],
    9: [
        ("can_tell_apart = 'messages'", "hides all later words"),
        ("can_tell_apart = 'nothing'", "it does see one word"),
        ("can_tell_apart = 'words'", "one of the three"),
        ("def positions_of(real): return torch.arange(real.shape[1]).expand_as(real)", "these are columns"),
        ("def positions_of(real): return real.cumsum(-1)", "you counted the token itself"),
        ("def positions_of(real): return real.cumsum(-1) - 1", "padding got position -1"),
        ("def positions_of(real): return real * 0", "the first row is"),
    ],
    10: [
        ("lora_numbers = 768 * 3072", "that is the frozen matrix"),
        ("lora_numbers = 8 * 768 * 3072", "added, not multiplied"),
        ("lora_numbers = 8 * 768", "count A, of (8, in)"),
        ("eight_labels = [-100, -100, -100, 8, 9, -100, -100, -100]", "never learn to stop"),
        ("eight_labels = [-100, -100, -100, 8, 9, 0, 0, 0]", "padding is scored"),
        ("eight_labels = [5, 6, 7, 8, 9, 0, -100, -100]", "seen but not scored"),
        ("eight_labels = [0] * 8", "-100 for the prompt"),
        ("def merged(lora): return lora.linear.weight + lora.B @ lora.A", "alpha / r = 4 is missing"),
        ("def merged(lora): return (lora.linear.weight + lora.scale * lora.B @ lora.A).T", "multiply B @ A"),
        (
            "def merged(lora):\n    lora.linear.weight += lora.scale * lora.B @ lora.A\n    return lora.linear.weight",
            "a second call would add",
        ),
        ("def merged(lora): return lora.linear.weight", "W plus scale times"),
    ],
    11: [
        ("loss_at_start = 0", "but the loss is -log sigmoid(0)"),
        ("loss_at_start = 0.5", "minus its logarithm"),
        ("loss_at_start = 1", "put a margin of 0"),
        ("four_advantages = [0.5, -0.5, -0.5, 0.5]", "divide by the standard deviation"),
        ("four_advantages = [0.866, -0.866, -0.866, 0.866]", "divides the squares by 3"),
        ("four_advantages = [1, 0, 0, 1]", "subtract their mean"),
        ("four_advantages = [0, 0, 0, 0]", "(reward - 0.5) / 0.5"),
        ("def reward_of_sum(question, answer): return float(answer == '7')", "words around the number"),
        ("def reward_of_sum(question, answer): return float('7' in answer)", "'17' holds a 7"),
        ("def reward_of_sum(question, answer): return float('7' in answer.replace('.', '').split())", "must not be rewarded"),
        (
            "def reward_of_sum(question, answer): import re; return float(re.findall(r'[0-9]+', answer)[-1] == '7')",
            "must get 0, not IndexError",
        ),
        ("def reward_of_sum(question, answer): return 1.0", "'8' is wrong"),
    ],
    12: [
        ("bits_of_an_eighth = math.log(8)", "logarithms to base 2"),
        ("bits_of_an_eighth = -3", "surprise is minus that"),
        ("bits_of_an_eighth = 8", "2 to which power"),
        ("place = 0", "what came *after* it"),
        ("place = 3", "the token just before"),
        ("place = 4", "move one place to the right"),
        ("def entropy(weights): return -(weights * weights.log2()).sum(-1)", "0 * log 0"),
        ("def entropy(weights): return -torch.xlogy(weights, weights).sum(-1)", "divide by log 2"),
        ("def entropy(weights): return torch.xlogy(weights, weights).sum(-1) / math.log(2)", "mind the minus sign"),
        ("def entropy(weights): return -torch.xlogy(weights, weights)", "one number for each row"),
        ("def entropy(weights): return weights.amax(-1)", "the entropies are"),
    ],
    13: [
        ("file_name = 'model.safetensors'", "knows nothing of classes"),
        ("file_name = 'modeling_gpt_scratch.py'", "something must say which file"),
        ("file_name = 'README.md'", "look at the list of files"),
        (
            "def native_loss(logits, labels, num_items_in_batch=None):\n"
            "    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())",
            "nothing is shifted",
        ),
        (
            "def native_loss(logits, labels, num_items_in_batch=None):\n"
            "    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",
            "num_items_in_batch is ignored",
        ),
        (
            "def native_loss(logits, labels, num_items_in_batch=None):\n"
            "    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) / (num_items_in_batch or 1)",
            "divide the *sum*",
        ),
        (
            "def native_loss(logits, labels, num_items_in_batch=None):\n"
            "    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction='sum')",
            "it is the mean over the labels",
        ),
    ],
}
