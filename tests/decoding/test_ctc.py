"""CTC prefix beam search: against all alignments one by one, and SpeechBrain's searcher."""

import itertools
import math

import pytest
import torch
from speechbrain.decoders.ctc import CTCPrefixBeamSearcher

from summarymixing.decoding import CTCGreedySearch
from summarymixing.decoding.ctc import CTCPrefixBeamSearch, ctc_log_probability
from summarymixing.decoding.ngram import NGram, arpa_lines, estimate
from summarymixing.errors import InputError

MODULES = {"ctc_lin": torch.nn.Identity()}
VOCABULARY = 5
TOKENS = (3, 4)  # those that may be found: 0 is the blank, 1 and 2 are the sentence's ends


def logits(frames, seed, sharpness=2.0, batch=1):
    torch.manual_seed(seed)
    return torch.randn(batch, frames, VOCABULARY) * sharpness


def all_sequences(log_probs):
    """{tokens: log probability}, from every alignment."""
    found = {}
    for path in itertools.product((0, *TOKENS), repeat=len(log_probs)):
        tokens = tuple(token for token, _ in itertools.groupby(path) if token)
        score = math.exp(sum(log_probs[t, token].item() for t, token in enumerate(path)))
        found[tokens] = found.get(tokens, 0.0) + score
    return {tokens: math.log(probability) for tokens, probability in found.items()}


@pytest.fixture(scope="module")
def ngram_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ngram") / "tokens.arpa"
    texts = [[3, 3, 4], [3, 4, 4, 3], [4, 3, 3], [3, 3, 3, 4]]
    path.write_text("".join(arpa_lines(estimate(texts, 3, VOCABULARY))))
    return str(path)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("weight, bonus", [(None, 0.0), (0.7, 0.4), (2.0, -0.3)])
def test_exact_with_a_wide_beam(seed, weight, bonus, ngram_file):
    x = logits(6, seed)
    expected = all_sequences(x[0].double().log_softmax(-1))
    arguments = {"beam_size": 200, "length_bonus": bonus}
    grams = {}
    if weight is not None:
        arguments |= {"ngram_file": ngram_file, "ngram_weight": weight}
        grams = dict(
            zip(expected, NGram.read(ngram_file, VOCABULARY).log_probability(list(expected)))
        )
    scores = {
        tokens: score + (weight or 0) * grams.get(tokens, 0.0) + bonus * len(tokens)
        for tokens, score in expected.items()
    }
    found = CTCPrefixBeamSearch(**arguments).nbest(MODULES, x, torch.tensor([6]))[0]
    assert {tuple(h.tokens) for h in found} == set(expected) and len(found) == len(expected)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for hypothesis in found:
        tokens = tuple(hypothesis.tokens)
        assert hypothesis.score == pytest.approx(scores[tokens], abs=1e-5)
        assert hypothesis.parts["ctc"] == pytest.approx(expected[tokens], abs=1e-5)
        assert hypothesis.parts.get("ngram", 0.0) == pytest.approx(grams.get(tokens, 0.0), abs=1e-5)


@pytest.mark.parametrize("beam_size", (1, 2, 5))
@pytest.mark.parametrize("sharpness", (1.0, 4.0))
def test_narrow_beams_are_speechbrains(beam_size, sharpness):
    theirs = CTCPrefixBeamSearcher(
        blank_index=0, vocab_list=list("-abcd"), space_token="|", beam_size=beam_size,
        beam_prune_logp=-1e9, token_prune_min_logp=-1e9, prune_history=False, topk=beam_size,
    )  # fmt: skip
    search = CTCPrefixBeamSearch(beam_size)
    for seed in range(10):
        x = logits(20, seed, sharpness)
        x[..., 1:3] = -1e4  # the sentence's ends, which SpeechBrain's does not know
        expected = [hypothesis.text for hypothesis in theirs(x.log_softmax(-1), torch.ones(1))[0]]
        found = search.nbest(MODULES, x, torch.tensor([20]))[0]
        texts = ["".join("-abcd"[token] for token in h.tokens) for h in found]
        # Theirs are sorted by what stayed in the beam, ours by all alignments.
        assert sorted(texts) == sorted(expected)


def test_the_candidates_of_a_frame_are_enough():
    # More tokens than are considered in a frame: nothing is lost by that without an n-gram model.
    torch.manual_seed(0)
    x = torch.randn(1, 4, 90) * 0.3
    x[..., 1:3] = -1e4
    vocabulary = ["-", *(chr(0x4E00 + i) for i in range(89))]
    theirs = CTCPrefixBeamSearcher(
        blank_index=0, vocab_list=vocabulary, space_token="|", beam_size=8,
        beam_prune_logp=-1e9, token_prune_min_logp=-1e9, prune_history=False, topk=8,
    )  # fmt: skip
    expected = [h.text for h in theirs(x.log_softmax(-1), torch.ones(1))[0]]
    found = CTCPrefixBeamSearch(8).nbest(MODULES, x, torch.tensor([4]))[0]
    assert sorted("".join(vocabulary[t] for t in h.tokens) for h in found) == sorted(expected)


@pytest.mark.parametrize("with_ngram", (False, True))
def test_alone_and_in_a_batch(with_ngram, ngram_file):
    x, lengths = logits(25, 3, batch=6), torch.tensor([7, 25, 0, 1, 25, 12])
    for row, length in enumerate(lengths):
        x[row, length:] = torch.nan  # what stands in the padding must not matter
    search = CTCPrefixBeamSearch(4, ngram_file if with_ngram else None)
    together = search.nbest(MODULES, x, lengths)
    assert any(hypotheses[0].tokens for hypotheses in together)
    for row, length in enumerate(lengths):
        alone = search.nbest(MODULES, x[row : row + 1, :length], lengths[row : row + 1])[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        for one, other in zip(alone, together[row]):
            assert one.score == pytest.approx(other.score, abs=1e-9)


def test_the_n_gram_model_decides(ngram_file):
    # The head cannot tell 3 from 4; the model has never seen a sentence that begins with 4 4.
    x = torch.full((1, 6, VOCABULARY), -20.0)
    x[0, ::2, 3:] = 0.0
    x[0, 1::2, 0] = 0.0
    search = CTCPrefixBeamSearch(30, ngram_file, ngram_weight=1.0)
    model = NGram.read(ngram_file, VOCABULARY)
    possible = [list(tokens) for tokens in itertools.product(TOKENS, repeat=3)]
    best = max(zip(model.log_probability(possible), possible))[1]
    assert search(MODULES, x, torch.tensor([6])) == [best]
    assert search.nbest(MODULES, x, torch.tensor([6]))[0][0].complete


def test_a_beam_of_one_is_greedy_when_it_is_certain():
    x = logits(40, 5, sharpness=60.0, batch=3)
    x[..., 1:3] = -1e4
    lengths = torch.tensor([40, 31, 8])
    assert CTCPrefixBeamSearch(1)(MODULES, x, lengths) == CTCGreedySearch()(MODULES, x, lengths)


def test_nothing_to_hear(ngram_file):
    lengths = torch.tensor([0, 1, 9])
    x = torch.full((3, 9, VOCABULARY), -1e4)
    x[..., 0] = 0.0  # all blank
    for search in (CTCPrefixBeamSearch(3), CTCPrefixBeamSearch(3, ngram_file)):
        assert search(MODULES, x, lengths) == [[], [], []]
    assert CTCPrefixBeamSearch(3)(MODULES, x[:, :0], torch.zeros(3, dtype=torch.long)) == [[]] * 3
    assert CTCPrefixBeamSearch(3)(MODULES, x[:0], lengths[:0]) == []
    ends = logits(9, 0)
    ends[..., 1:3] = 50.0  # the sentence's ends are no tokens of a sentence
    assert all(
        set(h.tokens) <= set(TOKENS)
        for h in CTCPrefixBeamSearch(3).nbest(MODULES, ends, torch.tensor([9]))[0]
    )


@pytest.mark.parametrize("value", (math.nan, math.inf))
@pytest.mark.parametrize("with_ngram", (False, True))
def test_what_is_not_finite_spoils_its_own_utterance_only(value, with_ngram, ngram_file):
    x, lengths = logits(9, 4, batch=4), torch.tensor([9, 5, 9, 7])
    search = CTCPrefixBeamSearch(4, ngram_file if with_ngram else None)
    expected = search.nbest(MODULES, x, lengths)
    x[0, 8, 3] = x[3, 2] = value
    x[1, 5] = value  # in the padding
    found = search.nbest(MODULES, x, lengths)
    for row in (0, 3):
        (hypothesis,) = found[row]
        assert (hypothesis.tokens, hypothesis.complete) == ([], False)
        assert hypothesis.parts.keys() == expected[row][0].parts.keys()
    assert [found[1], found[2]] == [expected[1], expected[2]] and found[1][0].tokens


def test_probability_of_sequences():
    log_probs = logits(7, 1)[0].double().log_softmax(-1)
    expected = all_sequences(log_probs)
    sequences = [list(tokens) for tokens in expected]
    found = ctc_log_probability(log_probs, sequences)
    torch.testing.assert_close(found, torch.tensor(list(expected.values())).double())
    assert ctc_log_probability(log_probs, [[3] * 5]).item() == -math.inf
    assert ctc_log_probability(log_probs[:0], [[], [3]]).tolist() == [0.0, -math.inf]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"beam_size": 0}, "beam_size must be a positive integer, got 0"),
        ({"beam_size": 2.5}, "beam_size must be a positive integer, got 2.5"),
        ({"beam_size": "many"}, "beam_size must be a positive integer, got 'many'"),
        ({"ngram_weight": -1}, "ngram_weight must be a number, at least 0, got -1"),
        ({"ngram_weight": "1"}, "ngram_weight must be a number, at least 0, got '1'"),
        ({"length_bonus": math.nan}, "length_bonus must be a number, finite, got nan"),
        ({"length_bonus": None}, "length_bonus must be a number, finite, got None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        CTCPrefixBeamSearch(**arguments)


@pytest.mark.parametrize("lengths", ([5, 4], [4, -1], [4], [[4, 4]], [1.0, 0.5]))
def test_lengths_that_are_not_those_of_the_frames(lengths):
    with pytest.raises(InputError, match="lengths must be 2 integers from 0 to 4 frames, got "):
        CTCPrefixBeamSearch(2)(MODULES, logits(4, seed=0, batch=2), torch.tensor(lengths))


def test_an_n_gram_file_of_another_tokenizer(ngram_file):
    with pytest.raises(InputError, match="another tokenizer"):
        CTCPrefixBeamSearch(2, ngram_file)(MODULES, torch.rand(1, 3, 4), torch.tensor([3]))


def test_an_n_gram_file_is_read_once_and_another_at_once(ngram_file, tmp_path):
    x, length = logits(6, seed=2), torch.tensor([6])
    path = tmp_path / "tokens.arpa"
    path.write_text("".join(arpa_lines(estimate([[4, 3, 4]], 2, VOCABULARY))))
    search = CTCPrefixBeamSearch(30, str(path))
    first = search.nbest(MODULES, x, length)
    path.unlink()
    assert search.nbest(MODULES, x, length) == first
    search.ngram_file = ngram_file
    other = search.nbest(MODULES, x, length)
    assert other == CTCPrefixBeamSearch(30, ngram_file).nbest(MODULES, x, length) != first


def test_no_ngram_file():
    search = CTCPrefixBeamSearch(ngram_file="nowhere")
    with pytest.raises(InputError, match="n-gram file nowhere: No such file"):
        search(MODULES, logits(4, seed=0), torch.tensor([4]))
