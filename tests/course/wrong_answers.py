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
        ("def embed_from(embedding, ids, start): return embedding.tokens[ids] + embedding.positions[start]", "start .. start + T"),
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
}
