"""N-grams: against figures by hand, and against SpeechBrain's look-up, context by context."""

import gzip
import io
import itertools
import math
import random
from collections import Counter

import pytest
import torch
from speechbrain.lm.arpa import read_arpa
from speechbrain.lm.ngram import BackoffNgramLM

from summarymixing.decoding.ngram import NGram, arpa_lines, estimate
from summarymixing.errors import InputError

# log10: the numbers are such that sums are plain to see. 4 5 is listed, 5 4 backs off.
ARPA = """made by hand

\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-2.0\t<unk>
-0.7\t4\t-0.3
-0.8\t5\t-0.1

\\2-grams:
-0.2\t<s> 4\t-0.05
-0.4\t4 5\t-0.6
-0.9\t5 </s>
-0.6\t4 4

\\3-grams:
-0.15\t<s> 4 5

\\end\\
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="model.arpa"):
        path = tmp_path / name
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def text():
    random.seed(0)
    return [[random.choice([3, 3, 3, 4, 4, 5, 6, 6]) for _ in range(random.randrange(9))]
            for _ in range(60)]  # fmt: skip


@pytest.mark.parametrize(
    "sentence, log10",
    [
        ([4], -0.2 + (-0.05 - 0.3 - 1.0)),  # <s> 4, then </s> twice backed off
        ([4, 5], -0.2 - 0.15 + (-0.6 - 0.9)),  # the trigram; the bigram 5 </s> behind 4 5
        ([5], (-0.5 - 0.8) - 0.9),
        ([4, 4, 5], -0.2 + (-0.05 - 0.6) - 0.4 + (-0.6 - 0.9)),  # 4 4 has no weight
        ([], -0.5 - 1.0),
        ([3], (-0.5 - 2.0) - 1.0),  # unlisted; behind it there is no context
        ([5, 4], (-0.5 - 0.8) + (-0.1 - 0.7) + (-0.3 - 1.0)),
    ],
)
def test_by_hand(write, sentence, log10):
    model = NGram.read(write(ARPA), 6)
    assert model.order == 3
    assert model.log_probability([sentence])[0] == pytest.approx(log10 * math.log(10), abs=1e-5)
    perplexity = 10 ** (-log10 / (len(sentence) + 1))
    assert model.perplexity([sentence]) == pytest.approx(perplexity, rel=1e-5)


def test_compressed_is_the_same(write):
    sentences = [[4, 5], [3, 4, 4]]
    plain = NGram.read(write(ARPA), 6).log_probability(sentences)
    packed = NGram.read(write(gzip.compress(ARPA.encode()), "model.arpa.gz"), 6)
    assert packed.log_probability(sentences) == plain


@pytest.mark.parametrize("order", (1, 2, 3, 4))
def test_every_context_is_as_in_speechbrain(text, order, write):
    lines = "".join(arpa_lines(estimate(text, order, 8)))
    _, ngrams, backoffs = read_arpa(io.StringIO(lines))
    theirs = BackoffNgramLM(ngrams, backoffs)
    names = ["0", "<s>", "</s>", *"34567"]
    histories = [h for n in range(4) for h in itertools.product([3, 4, 6, 7], repeat=n)]
    model = NGram.read(write(lines), 8)
    for history in histories:
        state = model.initial_state(1)
        for token in (1, *history):
            found, state = model.step(torch.tensor([token]), state)
        context = ("<s>", *(names[token] for token in history))
        expected = [theirs.logprob(name, context) * math.log(10) for name in names]
        torch.testing.assert_close(found[0], torch.tensor(expected), atol=1e-4, rtol=0)
        assert found[0].exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_batch_is_its_hypotheses(text):
    model = NGram(estimate(text, 3, 8), 8)
    state = model.initial_state(5)
    alone = [model.initial_state(1) for _ in range(5)]
    for tokens in ([1] * 5, [3, 4, 5, 6, 7], [3, 3, 3, 3, 2]):
        rows, state = model.step(torch.tensor(tokens), state)
        for i, token in enumerate(tokens):
            row, alone[i] = model.step(torch.tensor([token]), alone[i])
            assert torch.equal(row[0], rows[i])
    rows, state = model.step(torch.tensor([4, 4]), state[[3, 1]])
    for i, hypothesis in enumerate((3, 1)):
        assert torch.equal(model.step(torch.tensor([4]), alone[hypothesis])[0][0], rows[i])


def test_kneser_ney_by_hand():
    # Bigrams: <s> 3 (2), 3 4 (2), 4 </s> (1), 4 3 (1), 3 </s> (1). n1 = 3, n2 = 2: D = 3/7.
    # What comes before: 3 follows <s> and 4, 4 follows 3, </s> follows 4 and 3; counts 2, 1, 2.
    # n1 = 1, n2 = 2: D = 1/5. The rest, 3 times 1/5 of 5, is shared by the 4 tokens but <s>.
    ngrams = estimate([[3, 4], [3, 4, 3]], 2, 5)
    found = {ngram: math.exp(p) for ngram, (p, _) in ngrams.items()}
    rest = 3 * (1 / 5) / 5 / 4
    unigrams = {(0,): rest, (2,): 1.8 / 5 + rest, (3,): 1.8 / 5 + rest, (4,): 0.8 / 5 + rest}
    for ngram, probability in unigrams.items():
        assert found[ngram] == pytest.approx(probability)
    d = 3 / 7
    expected = {
        (1, 3): (2 - d) / 2 + d / 2 * unigrams[3,],
        (3, 4): (2 - d) / 3 + 2 * d / 3 * unigrams[4,],
        (3, 2): (1 - d) / 3 + 2 * d / 3 * unigrams[2,],
        (4, 3): (1 - d) / 2 + 2 * d / 2 * unigrams[3,],
    }
    for ngram, probability in expected.items():
        assert found[ngram] == pytest.approx(probability)
    assert math.exp(ngrams[3,][1]) == pytest.approx(2 * d / 3)


def test_longer_contexts_help(text):
    # Sentences in which two tokens say the third.
    random.seed(1)
    sentences = []
    for _ in range(60):
        tokens = [random.choice([3, 4]) for _ in range(2)]
        for _ in range(10):
            tokens.append(3 if tokens[-1] == tokens[-2] else 4)
        sentences.append(tokens)
    perplexities = [NGram(estimate(sentences, n, 5), 5).perplexity(sentences) for n in (1, 2, 3)]
    assert perplexities[0] > perplexities[1] > perplexities[2]
    counts = Counter(token for s in sentences for token in [*s, 2])
    total = sum(counts.values())
    entropy = -sum(c / total * math.log(c / total) for c in counts.values())
    assert perplexities[0] == pytest.approx(math.exp(entropy), rel=0.02)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.replace("\\end\\", ""), "cut off"),
        (lambda t: t[: len(t) // 2], "cut off"),
        (lambda t: "words\n", "not an ARPA file"),
        (lambda t: "", "not an ARPA file"),
        (lambda t: t.replace("4 5", "4 HELLO"), "line 17: '4 HELLO' are not numbers of tokens"),
        (lambda t: t.replace("-0.4", "x"), "line 17: not a line of ARPA"),
        (lambda t: t.replace("ngram 2=4", "ngram 2=5"), "4 2-grams where it says 5"),
        (lambda t: t.replace("<s> 4 5", "5 4 5"), "'5 4 5' is listed, but not '5 4'"),
        (lambda t: t.replace("ngram 2=4\n", ""), "line 14: 2-grams, without 'ngram 2=' at the top"),
        (lambda t: t.replace("ngram 3=1", "ngram 3=1\nngram 4=2"), "0 4-grams where it says 2"),
        (lambda t: t.replace("-0.4", "nan"), "line 17: '4 5' has a probability or weight that"),
        (lambda t: t.replace("-0.3", "inf"), "line 12: '4' has a probability or weight that"),
        (lambda t: t.replace("4 4", "4 5"), "line 19: '4 5' is listed twice"),
        (lambda t: t.replace("4 4", "4 6"), "has the token 6, but the model's are 0 to 5"),
    ],
)
def test_bad_files(write, change, message):
    with pytest.raises(InputError, match=message):
        NGram.read(write(change(ARPA)), 6)


def test_bad_input(write, tmp_path):
    with pytest.raises(InputError, match="nowhere.arpa: No such file"):
        NGram.read(tmp_path / "nowhere.arpa", 6)
    with pytest.raises(InputError, match="cut.gz: "):
        NGram.read(write(gzip.compress(ARPA.encode())[:-20], "cut.gz"), 6)
    flipped = bytearray(gzip.compress(ARPA.encode()))
    for place in range(10, len(flipped) - 8):
        changed = flipped.copy()
        changed[place] ^= 0xFF
        with pytest.raises(InputError, match="flipped.gz"):
            NGram.read(write(bytes(changed), "flipped.gz"), 6)
    with pytest.raises(InputError, match="order of an n-gram model must be .*, got 0"):
        estimate([[3]], 0, 6)
    with pytest.raises(InputError, match="at least one sentence"):
        estimate([], 2, 6)
    with pytest.raises(InputError, match="outside of 0 to 5"):
        estimate([[6]], 2, 6)
