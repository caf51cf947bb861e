"""Typical wrong answers to the exercises of the course: by lesson, for each exercise the code and words of the reply that helps."""

WRONG_ANSWERS: dict[int, list[tuple[str, str]]] = {
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
}
