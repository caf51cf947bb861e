"""Training of byte-pair merges for [`BytePairTokenizer`].

Pair counts are updated incrementally instead of recounted after each merge, as minbpe does, so that a merge visits only the words that
contain its pair. On 1 MB of text this pure Python is faster than the Rust trainer of `tokenizers`; its merges are the same, including ties.
"""

import re
import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from itertools import accumulate, chain, pairwise, repeat
from operator import add

from tqdm import tqdm

from .pretokenization import split_gpt2

Pair = tuple[int, int]
LONGEST_WORD = 1024
LONG_CHARACTERS = 1 << 20
MAX_CHARACTERS = 10_000_000  # total length of distinct pieces used in training: about a million words, which take 1 GB
SILENT_SECONDS = 5  # time before a progress bar is shown


def _gpt2_byte_order() -> list[int]:
    """The 256 bytes in the order of GPT-2's ids: those with a visible Latin-1 character first, then the rest."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return visible + [byte for byte in range(256) if byte not in visible]


BYTE_ORDER = _gpt2_byte_order()
TO_IDS = bytes(BYTE_ORDER.index(byte) for byte in range(256))
# During training, a word is a string with one character per token, chr(id), so that string methods find and replace pairs at C speed.
# This character marks both ends of a word; ids from 256 on are shifted by one to make room for it.
END = chr(256)
_WORD_THEN_NEWLINE = re.compile(r"\S\n")


def count_pieces(texts: Iterable[str]) -> Counter[str]:
    """Count the pieces of GPT-2's pre-tokenization. Special tokens in the text count as text, as in `tokenizers`.

    To bound memory, pieces of more than LONGEST_WORD characters (base64 or text without spaces, rarely repeated) are cut there, and only
    the first LONG_CHARACTERS characters of them in total are counted. If the distinct pieces exceed MAX_CHARACTERS in total, the rarest
    are left out, and a note says so.
    """
    counts: Counter[str] = Counter()
    room, added, left_out = LONG_CHARACTERS, 0, 0
    for text in tqdm(texts, "counting words", unit=" texts", delay=SILENT_SECONDS, leave=False):
        for part in _parts(text):
            pieces = split_gpt2(part)
            if len(part) > LONGEST_WORD and max(map(len, pieces)) > LONGEST_WORD:
                longer = "".join(piece for piece in pieces if len(piece) > LONGEST_WORD)[:room]
                room -= len(longer)
                pieces = [piece for piece in pieces if len(piece) <= LONGEST_WORD]
                pieces += [longer[start : start + LONGEST_WORD] for start in range(0, len(longer), LONGEST_WORD)]
            counts.update(pieces)
            added += len(part)
            if added > MAX_CHARACTERS:  # summing over the distinct pieces after every part would be slow
                added = 0
                if sum(map(len, counts)) > 2 * MAX_CHARACTERS:
                    left_out += _leave_out_the_rarest(counts)
    left_out += _leave_out_the_rarest(counts)
    if left_out:
        print(
            f"note: the text has more different words than are learned from: the {left_out:,} rarest are left out",
            file=sys.stderr,
        )
    return counts


def _leave_out_the_rarest(counts: Counter[str]) -> int:
    """Keep the most frequent pieces, MAX_CHARACTERS in total, earlier ones on ties. Return the number of pieces removed."""
    if sum(map(len, counts)) <= MAX_CHARACTERS:
        return 0
    ordered = sorted(counts, key=counts.__getitem__, reverse=True)
    kept = bisect_right(list(accumulate(map(len, ordered))), MAX_CHARACTERS)
    for piece in ordered[kept:]:
        del counts[piece]
    return len(ordered) - kept


def _parts(text: str, length: int = 1 << 22) -> Iterator[str]:
    """Split `text` into parts of about `length` characters to bound memory, before a newline after a word, where a piece ends anyway."""
    start = 0
    while place := _WORD_THEN_NEWLINE.search(text, start + length):
        yield text[start : place.end() - 1]
        start = place.end() - 1
    yield text[start:]


def learn_merges(piece_counts: Mapping[str, int], vocab_size: int, min_frequency: int = 2) -> tuple[list[bytes], dict[Pair, int]]:
    """Learn the same byte-pair merges as `BpeTrainer` of `tokenizers`.

    Args:
        piece_counts: pieces of text and their counts.
        vocab_size: number of tokens to stop at, including the 256 bytes.
        min_frequency: less frequent pairs are not merged.

    Returns:
        The tokens' bytes by id, the single bytes first in GPT-2's order; and the merges in the order learned: (left id, right id) -> id
        of the merged token. Among equally frequent pairs, the one with the smallest ids is merged first.

    >>> tokens, merges = learn_merges({"low": 5, "lower": 2, "newest": 6, "widest": 3}, vocab_size=260)
    >>> tokens[256:]
    [b'es', b'est', b'lo', b'low']
    """
    tokens = [bytes([byte]) for byte in BYTE_ORDER]
    words = [f"{END}{piece.encode().translate(TO_IDS).decode('latin-1')}{END}" for piece in piece_counts]
    frequency = list(piece_counts.values()).__getitem__

    places = _places_of_pairs(words)  # may become stale, unlike the counts
    counts = {pair: sum(map(frequency, where)) for pair, where in places.items() if END not in pair}
    # Ordered by count, then by the pair's ids. An entry whose count has since fallen is pushed again when it comes up.
    heap = [(-count, pair, places[pair]) for pair, count in counts.items()]
    heapify(heap)

    merges: dict[Pair, int] = {}
    bar = tqdm(total=vocab_size - len(tokens), desc="learning merges", delay=SILENT_SECONDS, leave=False)
    while heap and len(tokens) < vocab_size:
        negative_count, pair, where = heap[0]
        count = counts[pair]
        if count != -negative_count:
            heapreplace(heap, (-count, pair, where))
            continue
        if count < max(min_frequency, 1):
            break
        heappop(heap)
        bar.update()
        left, right = pair[0], pair[1]
        ids_of_pair = (ord(left) - (left > END), ord(right) - (right > END))
        # No other pair yields the same token: the merges within a span that becomes one token are the same wherever it occurs.
        merges[ids_of_pair] = len(tokens)
        new = chr(len(tokens) + 1)
        tokens.append(tokens[ids_of_pair[0]] + tokens[ids_of_pair[1]])

        before, after, doubled = _replace_pair(words, where, pair, new)
        for places_of_new, old_pair, new_pair in (
            *((where, character + left, character + new) for character, where in before.items() if character != END),
            *((where, right + character, new + character) for character, where in after.items() if character != END),
            *([(doubled, right + left, new + new)] if doubled else ()),
        ):
            count = sum(map(frequency, places_of_new))
            counts[old_pair] -= count
            counts[new_pair] = count
            heappush(heap, (-count, new_pair, places_of_new))
    bar.close()
    return tokens, merges


def _places_of_pairs(words: list[str]) -> dict[str, list[int]]:
    """Inverted index: pair -> indices of the words that contain it, once per occurrence."""
    places: dict[str, list[int]] = defaultdict(list)
    joined = "".join(words)
    for pair, word in zip(map(add, joined, joined[1:]), chain.from_iterable(map(repeat, range(len(words)), map(len, words)))):
        places[pair].append(word)
    return places


def _replace_pair(words: list[str], where: list[int], pair: str, new: str):
    """Replace `pair` by `new` in the words `where`, in place.

    Returns the words by the character that precedes `new`; the words by the character that follows it; and the words with `new` twice in
    a row, where two occurrences of the pair were adjacent. A word is listed once per occurrence.
    """
    before: dict[str, list[int]] = defaultdict(list)
    after: dict[str, list[int]] = defaultdict(list)
    doubled: list[int] = []
    for number in where:
        parts = words[number].split(pair)
        if len(parts) == 2:
            first, last = parts
            words[number] = first + new + last
            before[first[-1]].append(number)
            after[last[0]].append(number)
        elif len(parts) > 2:
            words[number] = new.join(parts)
            for first, last in pairwise(parts):  # a word begins and ends with END, so only an inner part can be empty
                if first:
                    before[first[-1]].append(number)
                if last:
                    after[last[0]].append(number)
                else:
                    doubled.append(number)
    return before, after, doubled
