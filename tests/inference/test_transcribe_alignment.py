"""Words, times and confidences against the searches and against small sums by hand."""

import itertools
import math

import pytest
import torch

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.decoding import CTCPrefixBeamSearch, TransducerBeamSearch
from summarymixing.errors import InputError
from summarymixing.inference import alignment
from summarymixing.inference.alignment import Token, align, align_tokens, words_of


@pytest.mark.parametrize("kind", ("ctc", "transducer"))
@pytest.mark.parametrize("frames", (3, 2000))
def test_tokens_are_those_of_the_search(make_recogniser, monkeypatch, kind, frames):
    monkeypatch.setattr(alignment, "_FRAMES", frames)
    recogniser = make_recogniser(kind=kind)
    encoded, lengths = 3 * torch.randn(3, 40, 16), torch.tensor([40, 1, 17])
    search, modules = recogniser.search, recogniser.modules
    state = search.initial_state(modules, 3)
    expected, places, _ = search.step(modules, encoded, lengths, state)
    assert sum(map(len, expected)) > 10
    found = align(recogniser, encoded, lengths)
    assert [[token.number for token in row] for row in found] == expected
    assert [[token.first for token in row] for row in found] == places
    for row, length in zip(found, lengths):
        assert all(token.first <= token.last < length for token in row)
        assert all(token.log_probability <= 0 for token in row)


def test_ctc_runs_and_their_highest_probability(make_recogniser):
    recogniser = make_recogniser()
    recogniser.modules["ctc_lin"] = torch.nn.Identity()
    frames = torch.tensor(
        [[0.1, 0.7, 0.2], [0.1, 0.9, 0.0], [0.6, 0.1, 0.3], [0.2, 0.5, 0.3], [0.0, 0.2, 0.8]]
    )
    found = align(recogniser, frames.log().unsqueeze(0), torch.tensor([5]))[0]
    assert [(t.number, t.first, t.last) for t in found] == [(1, 0, 1), (1, 3, 3), (2, 4, 4)]
    assert [math.exp(t.log_probability) for t in found] == pytest.approx([0.9, 0.5, 0.8])


@pytest.mark.parametrize("seed", range(8))
def test_known_tokens_lie_on_their_best_path(seed):
    torch.manual_seed(seed)
    log_probs = (torch.randn(6, 4) * 2).log_softmax(-1)
    paths = {}  # by tokens
    for path in itertools.product(range(4), repeat=6):
        tokens = tuple(token for token, _ in itertools.groupby(path) if token)
        score = log_probs[range(6), path].sum().item()
        paths[tokens] = max(paths.get(tokens, (-math.inf, ())), (score, path))
    for tokens in ((1,), (2, 2), (1, 2, 3), (3, 3, 1, 1), (1, 2, 1, 2, 3, 1)):
        _, path = paths[tokens]
        found = align_tokens(log_probs, list(tokens))
        assert tuple(token.number for token in found) == tokens
        frames = {t: token.number for token in found for t in range(token.first, token.last + 1)}
        assert tuple(frames.get(t, 0) for t in range(6)) == path
        for token in found:
            highest = log_probs[token.first : token.last + 1, token.number].max().item()
            assert token.log_probability == pytest.approx(highest)


def test_tokens_that_have_no_path():
    log_probs = torch.randn(4, 5).log_softmax(-1)
    for numbers in ([3, 3, 3], [1, 2, 3, 4, 1]):
        found = align_tokens(log_probs, numbers)
        assert [token.number for token in found] == numbers
        firsts = [token.first for token in found]
        assert firsts == sorted(firsts) and firsts[0] == 0 and firsts[-1] < 4
    assert align_tokens(log_probs[:0], [1]) == align_tokens(log_probs, []) == []


def test_another_search(make_recogniser):
    recogniser = make_recogniser()
    encoded, lengths = 3 * torch.randn(3, 40, 16), torch.tensor([40, 1, 17])
    greedy = align(recogniser, encoded, lengths)
    recogniser.search = CTCPrefixBeamSearch(4)
    found = align(recogniser, encoded, lengths)
    expected = recogniser.search(recogniser.modules, encoded, lengths)
    assert [[token.number for token in row] for row in found] == expected
    assert found != greedy
    transducer = make_recogniser(kind="transducer")
    transducer.search = TransducerBeamSearch(2)
    with pytest.raises(InputError, match="beam search has no times"):
        align(transducer, encoded, lengths)


def test_transducer_probability_is_that_of_the_emission(make_recogniser):
    recogniser = make_recogniser(kind="transducer")
    encoded = 3 * torch.randn(1, 12, 16)
    modules = recogniser.modules
    predictor, joiner = modules["predictor"], modules["joiner"]
    found = align(recogniser, encoded, torch.tensor([12]))[0]
    assert found
    for i, token in enumerate(found):
        history = torch.tensor([[0, *(t.number for t in found[:i])]])
        logits = joiner(encoded[0, token.first], predictor(history)[0][0, -1])
        expected = logits.log_softmax(-1)[token.number].item()
        assert token.log_probability == pytest.approx(expected, abs=1e-5)


def _tokens(*frames_and_probabilities, numbers):
    return [
        Token(number, first, last, math.log(probability))
        for number, (first, last, probability) in zip(numbers, frames_and_probabilities)
    ]


def test_times_and_confidences_of_words():
    pieces = tokenizers.train_or_load(None, lambda: ["one two"], model_type="char")
    space, *one = (pieces.piece_to_id(piece) for piece in "▁one")
    tokens = _tokens(
        (0, 0, 0.5),  # a space, of the first word
        (10, 11, 0.8),
        (12, 12, 1.0),
        (13, 14, 0.5),
        (15, 15, 0.9),  # a space, of the second
        (16, 17, 1.0),
        (99, 99, 0.9),
        numbers=[space, *one, space, *one[:2]],
    )
    first, second = words_of(pieces, tokens, 0.04, limit=3.95)
    assert (first.text, second.text) == ("one", "on")
    assert first.confidence == pytest.approx(0.5 * 0.8 * 0.5)
    assert second.confidence == pytest.approx(0.9 * 0.9)
    assert first.start == pytest.approx(9.5 * 0.04 - 0.05)
    assert first.end == pytest.approx(14.5 * 0.04)
    # Not before the end of the word before; not behind the end of the recording.
    assert second.start == pytest.approx(14.5 * 0.04)
    assert second.end == 3.95
    assert words_of(pieces, [], 0.04) == []


def test_words_joined_are_the_text():
    text = ["one two", "grüß dich", "你好，世界 ok 7 一下"]
    pieces = tokenizers.train_or_load(None, lambda: text, model_type="char")
    for line, expected in zip(
        text, (["one", "two"], ["grüß", "dich"], ["你", "好，", "世", "界", "ok", "7", "一", "下"])
    ):
        numbers = pieces.encode(line)
        tokens = [Token(number, i, i, 0.0) for i, number in enumerate(numbers)]
        words = words_of(pieces, tokens, 0.04)
        assert [word.text for word in words] == expected
        joined = "".join(" " * word.spaced + word.text for word in words).strip()
        assert joined == pieces.decode(numbers)


def test_a_character_in_several_bytes():
    pieces = tokenizers.train_or_load(None, lambda: ["a b"], model_type="char")

    class Bytes:  # the tokenizer, with bytes from 100 on
        def __getattr__(self, name):
            return getattr(pieces, name)

        def is_byte(self, token):
            return token >= 100

        def id_to_piece(self, token):
            return f"<0x{token - 100:02X}>" if token >= 100 else pieces.id_to_piece(token)

    numbers = [*(100 + byte for byte in "é".encode()), pieces.piece_to_id("b")]
    (word,) = words_of(Bytes(), _tokens((5, 5, 0.5), (6, 6, 0.5), (7, 7, 1), numbers=numbers), 0.1)
    assert (word.text, word.confidence) == ("éb", pytest.approx(0.25))
    assert (word.start, word.end) == (pytest.approx(0.4), pytest.approx(0.75))
