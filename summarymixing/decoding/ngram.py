"""Back-off n-gram models over tokens: read from ARPA files, stepped in batches, and estimated.

The words of such a file are the numbers of a tokenizer's tokens, so that a search needs no
tokenizer, and no piece of text is mistaken for white space or a special word:

    spm_encode --model=tokenizer.model --output_format=id < text.txt | lmplz -o 4 > tokens.arpa

is what makes one of a large text, with SentencePiece's and KenLM's commands. `estimate`, behind
`scripts/train_ngram.py`, is for what fits into the memory.
"""

import gzip
import math
import zlib
from collections import Counter, defaultdict
from contextlib import contextmanager

import torch

from summarymixing.decoding.hypotheses import BOS, EOS
from summarymixing.errors import InputError, check_integer

_WORDS = {"<s>": BOS, "</s>": EOS}
_UNKNOWN = "<unk>"
# What stands in ARPA files for the logarithm of 0.
_NEVER = -99.0


class NGram:
    """A back-off n-gram model as tensors: a state is a context, for a batch of hypotheses a number.

    Arguments
    ---------
    ngrams : dict of tuple of int to (float, float)
        Natural log probability and back-off weight of each n-gram of tokens, of all orders; the
        sentence begins with token 1 and ends with token 2. Under the key () the log probability of
        tokens that are not listed, if they are not impossible, and anything.
    vocabulary : int
        Number of tokens.
    name : str
        For messages.

    Raises
    ------
    InputError
        If a token is outside of the vocabulary, or an n-gram is listed without its beginning.

    Example
    -------
    >>> ngrams = estimate([[4, 5, 4, 5], [4, 5]], order=2, vocabulary=6)
    >>> model = NGram(ngrams, vocabulary=6)
    >>> state = model.initial_state(1)
    >>> log_probabilities, state = model.step(torch.tensor([1]), state)  # the sentence begins
    >>> log_probabilities, state = model.step(torch.tensor([4]), state)
    >>> log_probabilities.argmax().item(), log_probabilities.exp().sum().item()
    (5, 1.0...)
    """

    def __init__(self, ngrams, vocabulary, name="n-gram model"):
        self.vocabulary = vocabulary
        self.order = max(map(len, ngrams), default=0)
        if self.order < 1:
            raise InputError(f"{name}: there are no n-grams in it")
        largest = max(max(ngram) for ngram in ngrams if ngram)
        if largest >= vocabulary:
            raise InputError(
                f"{name}: it has the token {largest}, but the model's are 0 to {vocabulary - 1}: "
                "it was made with another tokenizer"
            )
        contexts = {(): 0}
        for ngram in sorted(ngrams, key=len):
            if ngram[:-1] not in contexts:
                raise InputError(
                    f"{name}: {_words(ngram)!r} is listed, but not {_words(ngram[:-1])!r}, "
                    "with which it begins"
                )
            if 0 < len(ngram) < self.order:
                contexts[ngram] = len(contexts)
        unlisted = ngrams.get((), (-math.inf, 0.0))[0]
        self._first = torch.full((vocabulary,), unlisted)
        self._first_state = torch.zeros(vocabulary, dtype=torch.long)
        listed = []
        for ngram, (log_probability, _) in ngrams.items():
            if len(ngram) == 1:
                self._first[ngram[0]] = log_probability
                self._first_state[ngram[0]] = _longest(ngram, contexts)
            elif ngram:
                place = contexts[ngram[:-1]] * vocabulary + ngram[-1]
                listed.append((place, log_probability, _longest(ngram, contexts)))
        # Listed successors of the contexts, those of each in a row.
        listed.sort()
        self._places = torch.tensor([row[0] for row in listed], dtype=torch.long)
        self._log_probabilities = torch.tensor([row[1] for row in listed], dtype=torch.float32)
        self._next_states = torch.tensor([row[2] for row in listed], dtype=torch.long)
        self._begins = torch.searchsorted(
            self._places, torch.arange(len(contexts) + 1) * vocabulary
        )
        self._shorter = torch.tensor([_longest(context[1:], contexts) for context in contexts])
        self._backoff = torch.tensor([ngrams[c][1] if c else 0.0 for c in contexts])

    @classmethod
    def read(cls, path, vocabulary):
        """The model in an ARPA file, compressed by gzip or not.

        Arguments
        ---------
        path : str or os.PathLike
        vocabulary : int

        Raises
        ------
        InputError
            If there is no such file, it is not a whole ARPA file, or its words are not the numbers
            of tokens.

        Example
        -------
        >>> import tempfile
        >>> lines = arpa_lines(estimate([[4, 5], [5]], order=2, vocabulary=6))
        >>> with tempfile.NamedTemporaryFile("w", suffix=".arpa") as file:
        ...     file.writelines(lines)
        ...     file.flush()
        ...     NGram.read(file.name, vocabulary=6).order
        2
        """
        return cls(_read(path), vocabulary, str(path))

    def to(self, device):
        """The same model, now on a device."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        return self

    def initial_state(self, count):
        """State (count,) before the token that begins a sentence."""
        return torch.zeros(count, dtype=torch.long, device=self._first.device)

    def step(self, tokens, state):
        """Goes on by a token for each hypothesis.

        Arguments
        ---------
        tokens : torch.Tensor
            (hypotheses,), int.
        state : torch.Tensor
            (hypotheses,), int64: one number for each, whatever the order.

        Returns
        -------
        log_probabilities : torch.Tensor
            (hypotheses, vocabulary), natural, of the tokens that follow; token 2 is the end of the
            sentence.
        state : torch.Tensor
        """
        state = self._after(tokens, state)
        return self._following(state), state

    def log_probability(self, sentences):
        """The natural log probability of sentences, their ends included.

        Arguments
        ---------
        sentences : list of list of int

        Returns
        -------
        list of float
        """
        return [self._sentence(list(sentence)) for sentence in sentences]

    def perplexity(self, sentences):
        """Of a list of sentences, per token, where the end of a sentence counts as one."""
        total = sum(self.log_probability(sentences))
        return math.exp(-total / sum(len(sentence) + 1 for sentence in sentences))

    def _sentence(self, tokens):
        device = self._first.device
        state, states = self._after(torch.tensor([BOS], device=device), self.initial_state(1)), []
        for token in tokens:
            states.append(state)
            state = self._after(torch.tensor([token], device=device), state)
        states = torch.cat([*states, state])
        wanted = torch.tensor([*tokens, EOS], device=device)
        total = 0.0
        for some, of_these in zip(states.split(1000), wanted.split(1000)):
            rows = self._following(some).double()
            total += rows.gather(1, of_these.unsqueeze(1)).sum().item()
        return total

    def _after(self, tokens, state):
        """The longest known context at the end of a state and a token."""
        found = self._first_state[tokens]
        open_ = torch.ones_like(state, dtype=torch.bool)
        if not len(self._places):
            return found
        for _ in range(self.order - 1):
            place = state * self.vocabulary + tokens
            index = torch.searchsorted(self._places, place).clamp(max=len(self._places) - 1)
            here = open_ & (state > 0) & (self._places[index] == place)
            found = torch.where(here, self._next_states[index], found)
            open_ &= ~here
            state = self._shorter[state]
        return found

    def _following(self, state):
        chain = [state]
        for _ in range(self.order - 2):
            chain.append(self._shorter[chain[-1]])
        rows = self._first.repeat(len(state), 1)
        for state in reversed(chain):
            rows += self._backoff[state].unsqueeze(1)
            begins, ends = self._begins[state], self._begins[state + 1]
            counts = ends - begins
            row = torch.repeat_interleave(counts)
            offset = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
            index = begins[row] + offset
            token = self._places[index] % self.vocabulary
            rows[row, token] = self._log_probabilities[index]
        return rows


def estimate(sentences, order, vocabulary):
    """An n-gram model with interpolated Kneser-Ney smoothing, one discount an order.

    Every token has a probability after any context: the unigrams are interpolated with the uniform
    distribution. The discount of an order is n1 / (n1 + 2 n2), where n1 and n2 are how many n-grams
    have been seen once and twice; since small texts may have none, it is held between 0.1 and 0.9.

    S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling",
    Computer Speech and Language 13, 1999, equations (22) to (24).

    Arguments
    ---------
    sentences : iterable of list of int
        Tokens, without those that begin and end a sentence.
    order : int
    vocabulary : int
        Number of tokens.

    Returns
    -------
    dict of tuple of int to (float, float)
        As `NGram` takes it.

    Raises
    ------
    InputError
        For an order below 1, without sentences, or with a token outside of the vocabulary.

    Example
    -------
    >>> ngrams = estimate([[3, 4], [3, 3]], order=1, vocabulary=5)
    >>> [(ngram, round(math.exp(p), 3)) for ngram, (p, _) in sorted(ngrams.items())]
    [((0,), 0.042), ((1,), 0.0), ((2,), 0.319), ((3,), 0.486), ((4,), 0.153)]
    """
    check_integer("the order of an n-gram model", order)
    counts = [Counter() for _ in range(order)]  # by length: the last are plain counts
    for sentence in sentences:
        if sentence and not 0 <= min(sentence) <= max(sentence) < vocabulary:
            raise InputError(f"a sentence has tokens outside of 0 to {vocabulary - 1}: {sentence}")
        tokens = (BOS, *sentence, EOS)
        for end in range(2, len(tokens) + 1):
            counts[-1][tokens[max(0, end - order) : end]] += 1
    if not counts[-1]:
        raise InputError("an n-gram model needs at least one sentence, got none")
    # What is shorter than the order there begins with the sentence, which nothing comes before.
    for ngram in [ngram for ngram in counts[-1] if len(ngram) < order]:
        counts[len(ngram) - 1][ngram] = counts[-1].pop(ngram)
    for longer, shorter in zip(counts[:0:-1], counts[-2::-1]):
        for ngram in longer:
            shorter[ngram[1:]] += 1
    return _interpolated(counts, vocabulary)


def _interpolated(counts, vocabulary):
    # The token that begins a sentence is never predicted.
    below = {(): {token: 1 / (vocabulary - 1) for token in range(vocabulary) if token != BOS}}
    ngrams = {(BOS,): [_NEVER * math.log(10), 0.0]}
    for length, seen in enumerate(counts, 1):
        numbers = Counter(seen.values())
        once, twice = numbers[1], numbers[2]
        discount = min(max(once / max(once + 2 * twice, 1), 0.1), 0.9)
        totals, kinds = Counter(), Counter()
        for ngram, count in seen.items():
            totals[ngram[:-1]] += count
            kinds[ngram[:-1]] += 1
        weights = {context: discount * kinds[context] / totals[context] for context in totals}
        here = defaultdict(dict)
        for ngram, count in seen.items():
            context, token = ngram[:-1], ngram[-1]
            lower = below[context[1:]][token]
            probability = (count - discount) / totals[context] + weights[context] * lower
            here[context][token] = probability
        if length == 1:
            for token, uniform in below[()].items():
                here[()].setdefault(token, weights[()] * uniform)
        else:
            for context, weight in weights.items():
                ngrams[context][1] = math.log(weight)
        for context, tokens in here.items():
            for token, probability in tokens.items():
                ngrams[(*context, token)] = [math.log(probability), 0.0]
        below = here
    return {ngram: tuple(values) for ngram, values in ngrams.items()}


def arpa_lines(ngrams):
    """The lines of the ARPA file of a model.

    Arguments
    ---------
    ngrams : dict
        As `estimate` gives it.

    Yields
    ------
    str
        Each with its end.
    """
    by_length = defaultdict(list)
    for ngram in sorted(ngrams):
        by_length[len(ngram)].append(ngram)
    by_length = dict(sorted(by_length.items()))
    yield "\\data\\\n"
    for length, some in by_length.items():
        yield f"ngram {length}={len(some)}\n"
    for length, some in by_length.items():
        yield f"\n\\{length}-grams:\n"
        for ngram in some:
            log_probability, backoff = (value / math.log(10) for value in ngrams[ngram])
            end = f"\t{backoff:.7f}" if backoff else ""
            yield f"{log_probability:.7f}\t{_words(ngram)}{end}\n"
    yield "\n\\end\\\n"


def _words(ngram):
    names = {number: word for word, number in _WORDS.items()}
    return " ".join(names.get(token, str(token)) for token in ngram)


def _longest(ngram, contexts):
    """The number of the longest context that an n-gram ends with."""
    while ngram not in contexts:
        ngram = ngram[1:]
    return contexts[ngram]


@contextmanager
def _opened(path):
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if compressed else open)(path, "rt", encoding="utf-8") as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"n-gram file {path}: {reason}") from error


def _read(path):
    # SpeechBrain's `read_arpa` never returns from a file that is cut off.
    ngrams, promised, listed, length = {}, {}, Counter(), None
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line = line.strip()
                if line == "\\data\\":
                    length = 0
                elif line == "\\end\\" and length is not None:
                    while file.read(2**20):  # up to the checksum of gzip
                        pass
                    break
                elif line.startswith("\\") and line.endswith("-grams:"):
                    length = int(line[1:].removesuffix("-grams:"))
                    if length not in promised:
                        raise InputError(f"{length}-grams, without 'ngram {length}=' at the top")
                elif length == 0 and line:
                    order, count = line.removeprefix("ngram").split("=")
                    promised[int(order)] = int(count)
                elif length and line:
                    listed[length] += 1
                    _add(ngrams, line.split(), length)
            except (ValueError, IndexError) as error:
                reason = str(error) if isinstance(error, InputError) else "not a line of ARPA"
                raise InputError(f"n-gram file {path}, line {number}: {reason}") from error
        else:
            raise InputError(f"n-gram file {path}: not an ARPA file, or one that is cut off")
    for order, count in promised.items():
        if listed[order] != count:
            raise InputError(
                f"n-gram file {path}: it has {listed[order]} {order}-grams where it says {count}"
            )
    return ngrams


def _add(ngrams, parts, length):
    log_probability, words, backoff = parts[0], parts[1 : length + 1], parts[length + 1 :]
    if len(words) != length or len(backoff) > 1:
        raise ValueError
    values = float(log_probability) * math.log(10), float(*backoff or [0]) * math.log(10)
    # Minus infinity is how some write the logarithm of 0.
    if any(math.isnan(value) or value == math.inf for value in values):
        raise InputError(f"{' '.join(words)!r} has a probability or weight that is no number")
    if _UNKNOWN in words or _UNKNOWN.upper() in words:
        if length == 1:
            ngrams[()] = values
        return
    try:
        ngram = tuple(_WORDS[word] if word in _WORDS else int(word) for word in words)
    except ValueError:
        raise InputError(
            f"{' '.join(words)!r} are not numbers of tokens: make the model from text encoded with "
            "spm_encode --output_format=id"
        ) from None
    if min(ngram) < 0:
        raise ValueError
    if ngram in ngrams:
        raise InputError(f"{_words(ngram)!r} is listed twice")
    ngrams[ngram] = values
