"""Token by token against SentencePiece's own decoding of all tokens."""

import io
import random

import pytest
import sentencepiece

from summarymixing.inference.text import Detokeniser, Transcript

TEXTS = ["one two three", "grüß dich", "你好 世界", "hello world of speech"] * 3


@pytest.fixture(
    scope="module",
    params=(
        {"model_type": "unigram", "vocab_size": 290, "byte_fallback": True},
        {"model_type": "bpe", "vocab_size": 60, "user_defined_symbols": ["<laugh>", "a▁b"]},
        {"model_type": "char", "vocab_size": 29, "add_dummy_prefix": False},
    ),
    ids=lambda arguments: arguments["model_type"],
)
def pieces(request):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        character_coverage=0.99,
        minloglevel=2,
        **request.param,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _random_tokens(pieces):
    """Real texts, any tokens, and runs of bytes, valid and not, with spaces and unknowns."""
    draw = random.Random(0)
    tokens = range(pieces.get_piece_size())
    special = [t for t in tokens if pieces.is_control(t) or pieces.is_unknown(t)]
    special += [t for t in tokens if "▁" in pieces.id_to_piece(t)]
    by_byte = [t for t in tokens if pieces.is_byte(t)]
    for _ in range(300):
        found = []
        for _ in range(draw.randrange(6)):
            kind = draw.randrange(4)
            if kind == 0:
                found += pieces.encode(draw.choice(TEXTS))
            elif kind == 1:
                found += draw.choices(tokens, k=3)
            elif kind == 2:
                found += draw.choices(special, k=2)
            elif by_byte:
                encoded = draw.choice(["你", "é", "😀", "a", " "]).encode()
                found += [by_byte[b] for b in encoded[: draw.randrange(5)]]
        yield found


def test_detokeniser_is_decode(pieces):
    for tokens in _random_tokens(pieces):
        detokeniser = Detokeniser(pieces)
        text = "".join(detokeniser.push(token) for token in tokens) + detokeniser.finish()
        assert text == pieces.decode(tokens), [pieces.id_to_piece(t) for t in tokens]


def test_stable_words_joined_are_the_text(pieces):
    for tokens in _random_tokens(pieces):
        transcript, stable, growing = Transcript(pieces, 0.5), [], None
        for frame, token in enumerate(tokens):
            transcript.add([token], [frame])
            for event in transcript.events():
                if growing is not None and event.start == growing.start:
                    assert event.text.startswith(growing.text)
                growing = None if event.stable else event
                if event.stable:
                    stable.append(event)
        transcript.finish()
        stable += transcript.events()
        assert all(event.stable for event in stable)
        assert "".join(event.text for event in stable) == pieces.decode(tokens).rstrip(" ")
        starts = [event.start for event in stable]
        assert starts == sorted(starts)


def test_words_and_their_times():
    from summarymixing.dataio import tokenizer

    pieces = tokenizer.train_or_load(None, lambda: ["one two"], model_type="char")
    space, *letters = (pieces.piece_to_id(piece) for piece in "▁one")
    transcript = Transcript(pieces, 0.04)
    transcript.add([space, *letters[:2]], [3, 10, 12])
    (event,) = transcript.events()
    assert (event.text, event.start, event.end, event.stable) == ("on", 0.4, 0.52, False)
    assert transcript.events() == []
    transcript.add([letters[2], space], [13, 50])
    (event,) = transcript.events()
    assert (event.text, event.start, event.end, event.stable) == ("one", 0.4, 0.56, True)
    transcript.add(letters, [60, 61, 62])
    transcript.finish()
    (event,) = transcript.events(limit=2.5)
    assert (event.text, event.start, event.end, event.stable) == (" one", 2.4, 2.5, True)


def test_a_text_without_spaces_is_kept_short():
    from summarymixing.dataio import tokenizer

    pieces = tokenizer.train_or_load(None, lambda: ["one two"], model_type="char")
    transcript, text = Transcript(pieces, 0.04, longest=5), ""
    for frame in range(100):
        transcript.add([pieces.piece_to_id("o")], [frame])
        events = transcript.events()
        assert len("".join(event.text for event in events)) <= 6
        text += "".join(event.text for event in events if event.stable)
    transcript.finish()
    assert text + transcript.events()[0].text == "o" * 100
