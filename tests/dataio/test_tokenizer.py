"""Tokenizers: exact round trips, fixed special ids, and messages for what a user gets wrong."""

import logging
import random
import re

import pytest

from summarymixing.dataio.tokenizer import check_fits, load, train, train_or_load
from summarymixing.errors import InputError

ALPHABETS = {
    "latin": "abcdefghijklmnopqrstuvwxyz'-",
    "mixed case and digits": "aBcDeF0123456789.,?!",
    "accents": "éèüßñçøœ" + "e\u0301",
    "cyrillic": "абвгдежзийклмн",
    "greek": "αβγδεζηθάς",
    "arabic": "ابتثجحخد",
    "devanagari": "कखगघिीुू",
    "thai": "กขคงจฉาิี",
    "chinese": "的一是不了人我在有他",
    "japanese": "あいうえおカキクケコ日本",
    "hangul": "가나다라마바사",
    # What a normalising tokenizer would fold: ligature, full width, roman numeral, quotes.
    "compatibility": "ﬁＡⅣ½“”…",
}
TYPES = ["unigram", "bpe", "char"]


def corpus(alphabet="abcdefgh", size=60, seed=0):
    draw = random.Random(seed)
    return [
        " ".join(
            "".join(draw.choices(alphabet, k=draw.randint(1, 6))) for _ in range(draw.randint(1, 6))
        )
        for _ in range(size)
    ]


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("script", ALPHABETS)
def test_round_trip_gives_the_text_back(tmp_path, script, model_type):
    texts = corpus(ALPHABETS[script])
    # All characters once, so that the unseen texts below hold no unknown one.
    texts.append(ALPHABETS[script])
    vocab_size = None if model_type == "char" else 35
    tokenizer = train(texts, tmp_path / "m.model", vocab_size, model_type)
    for text in texts + corpus(ALPHABETS[script], seed=1):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("model_type", TYPES)
def test_special_tokens_and_size(tmp_path, model_type):
    tokenizer = train(corpus(), tmp_path / "m.model", 12, model_type)
    assert tokenizer.get_piece_size() == 12
    ids = tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()
    assert ids == (0, 1, 2, -1)
    assert tokenizer.encode("ω")[-1] == 0
    # The specials are the model's to add.
    assert not {1, 2} & {token for text in corpus() for token in tokenizer.encode(text)}


@pytest.mark.parametrize("model_type", TYPES)
def test_same_texts_give_the_same_file(tmp_path, model_type):
    texts = corpus(size=300)
    for name in ("a", "b"):
        train(iter(texts), tmp_path / name, 12, model_type)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_training_is_quiet_and_leaves_one_file(tmp_path, capfd):
    train(corpus(), tmp_path / "new" / "m.model", 20)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.model"]


def test_failed_training_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.model"
    train(corpus(), path, 20)
    before = path.read_bytes()
    with pytest.raises(InputError):
        train(corpus(), path, 100_000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.model"
    train(corpus(), path, 20)
    before = path.read_bytes()

    def interrupted(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(OSError, match="disk full"):
        train(corpus(), path, 25)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_characters_need_no_size(tmp_path):
    tokenizer = train(["abc", "cab d"], tmp_path / "m.model", model_type="char")
    # Three special tokens, the word mark and four letters.
    assert tokenizer.get_piece_size() == 8


def test_long_and_blank_lines_are_not_lost(tmp_path):
    long = "x" + " a" * 5000
    tokenizer = train(["", "b", "  ", long], tmp_path / "m.model", model_type="char")
    assert 0 not in tokenizer.encode(long)


def test_coverage_turns_rare_characters_unknown(tmp_path):
    texts = ["a b c"] * 1000 + ["q"]
    full = train(texts, tmp_path / "full", model_type="char")
    partial = train(texts, tmp_path / "partial", model_type="char", character_coverage=0.999)
    assert 0 not in full.encode("q")
    assert partial.encode("q")[-1] == 0 and 0 not in partial.encode("a b c")


@pytest.mark.parametrize("model_type", TYPES)
def test_too_large_a_size_names_the_largest(tmp_path, model_type):
    texts = corpus(size=10)
    with pytest.raises(InputError) as caught:
        train(texts, tmp_path / "m.model", 5000, model_type)
    message = str(caught.value)
    assert message.startswith("vocab_size 5000 is too large") and "\n" not in message
    largest, key = re.search(r"at most (\d+) \((\w+) in a recipe\)$", message).groups()
    assert key == "output_neurons"
    largest = int(largest)
    # It is the largest: it can be trained, and one more cannot.
    assert train(texts, tmp_path / "m.model", largest, model_type).get_piece_size() == largest
    with pytest.raises(InputError, match=f"at most {largest} "):
        train(texts, tmp_path / "m.model", largest + 1, model_type)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_small_a_size_names_the_smallest(tmp_path, model_type):
    # Eight letters, the word mark and three special tokens.
    with pytest.raises(InputError, match="vocab_size 5 is too small.* at least 12,"):
        train(corpus(), tmp_path / "m.model", 5, model_type)
    train(corpus(), tmp_path / "m.model", 12, model_type)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model_type": "word"}, "model_type must be one of unigram, bpe, char, got 'word'"),
        ({"vocab_size": None}, "vocab_size must be given for model_type unigram"),
        ({"vocab_size": 3}, "vocab_size must be above 3 .*got 3"),
        ({"character_coverage": 0}, "character_coverage must be in .*got 0"),
        ({"character_coverage": 1.5}, "character_coverage must be in .*got 1.5"),
        ({"texts": []}, "no text"),
        ({"texts": ["", "  "]}, "no text"),
        ({"texts": "one two"}, "single string"),
    ],
)
def test_what_train_refuses(tmp_path, arguments, message):
    arguments = {"texts": corpus(), "path": tmp_path / "m", "vocab_size": 20} | arguments
    with pytest.raises(InputError, match=message):
        train(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04" + bytes(100)])
def test_load_refuses_other_files(tmp_path, content, capfd):
    path = tmp_path / "other.model"
    path.write_bytes(content)
    with pytest.raises(InputError, match="other.model: not a SentencePiece model"):
        load(path)
    with pytest.raises(InputError, match="missing.model: no such file"):
        load(tmp_path / "missing.model")
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path)


def test_check_fits(tmp_path):
    tokenizer = train(corpus(), tmp_path / "m.model", 20)
    check_fits(tokenizer, 20, "m.model")
    with pytest.raises(InputError, match="m.model has 20 tokens but output_neurons is 21"):
        check_fits(tokenizer, 21, "m.model")


@pytest.mark.parametrize(
    "ids, message",
    [
        ({"bos_id": 3}, r"other.model.*\(bos\) must have id 1, it has 3$"),
        ({"eos_id": 3}, r"other.model.*\(eos\) must have id 2, it has 3$"),
        ({"unk_id": 1, "bos_id": 0}, r"other.model.*\(bos\) must have id 1, it has 0$"),
        (
            {"unk_id": 3, "pad_id": 0},
            r"other.model.*\(unk\) must have id 0, it has 3$",
        ),
        ({"bos_id": -1, "eos_id": -1}, r"must have id 1, it has -1 \(there is none\)"),
    ],
)
def test_check_fits_wants_the_ids_of_models(tmp_path, ids, message):
    import sentencepiece

    # As trained elsewhere.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(tmp_path / "other"),
        vocab_size=20,
        minloglevel=2,
        **ids,
    )
    with pytest.raises(InputError, match=message):
        check_fits(load(tmp_path / "other.model"), 20, "other.model")


def test_train_or_load_trains_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "m.model"
    calls = []

    def texts():
        calls.append(1)
        return corpus()

    first = train_or_load(path, texts, 20)
    assert len(calls) == 1 and path.exists()
    assert [r.getMessage() for r in caplog.records] == [
        f"tokenizer: trained {path} (unigram, 20 tokens)"
    ]
    caplog.clear()
    second = train_or_load(path, texts, 25)
    assert len(calls) == 1
    assert second.serialized_model_proto() == first.serialized_model_proto()
    assert [r.getMessage() for r in caplog.records] == [f"tokenizer: loaded {path} (20 tokens)"]


def test_train_or_load_without_a_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = train_or_load(None, corpus, 20, "bpe")
    assert tokenizer.get_piece_size() == 20
    assert not list(tmp_path.iterdir())


def test_train_or_load_does_not_overwrite_what_it_cannot_read(tmp_path):
    path = tmp_path / "m.model"
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        train_or_load(path, corpus, 20)
    assert path.read_bytes() == b"something else"
