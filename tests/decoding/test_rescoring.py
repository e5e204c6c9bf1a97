"""Rescoring: against the decoder and the language model asked for one prefix after the other."""

import pytest
import torch
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear

from summarymixing.decoding import rescoring
from summarymixing.decoding.ctc import CTCPrefixBeamSearch
from summarymixing.decoding.ngram import arpa_lines, estimate
from summarymixing.decoding.rescoring import RescoredCTCSearch
from summarymixing.errors import InputError
from summarymixing.models.transformer_asr import TransformerASR

VOCABULARY = 9


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


@pytest.fixture(scope="module", params=["attention", "SummaryMixing"])
def modules(request):
    torch.manual_seed(0)
    model = TransformerASR(
        VOCABULARY, 12, d_model=16, nhead=2, num_encoder_layers=1, num_decoder_layers=2, d_ffn=32,
        csgu_linear_units=32, decoder_mixer=request.param, attention_type="SummaryMixing",
        encoder_nhead=1,
    )  # fmt: skip
    heads = {n: Linear(input_size=16, n_neurons=VOCABULARY) for n in ("ctc_lin", "seq_lin")}
    return {name: randomise(m) for name, m in {"Transformer": model, **heads}.items()}


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    encoded, lengths = torch.randn(5, 7, 16), torch.tensor([7, 1, 0, 4, 6])
    for row, length in enumerate(lengths):
        encoded[row, length:] = torch.nan
    return encoded, lengths


def build_lm():
    return TransformerLM(VOCABULARY, 8, 2, 1, 0, 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    torch.save(randomise(build_lm()).state_dict(), folder / "lm.pt")
    (folder / "n.arpa").write_text("".join(arpa_lines(estimate([[3, 4, 5]], 2, VOCABULARY))))
    return {"lm": build_lm, "lm_file": str(folder / "lm.pt")}, str(folder / "n.arpa")


@torch.no_grad()
def one_by_one(network, tokens):
    """Log probability of a sentence: a call for each of its tokens, with what is before it."""
    total, prefix = 0.0, [1]
    for token in [*tokens, 2]:
        total += network(torch.tensor([prefix]))[0, -1].log_softmax(-1)[token].item()
        prefix.append(token)
    return total


@torch.no_grad()
def test_parts_and_score(modules, batch, files, monkeypatch):
    monkeypatch.setattr(rescoring, "_ROOM", 150)  # a few hypotheses at a time
    encoded, lengths = batch
    with_lm, ngram_file = files
    search = RescoredCTCSearch(
        4, 0.3, ngram_file, ngram_weight=0.2, length_bonus=0.7, lm_weight=0.6, **with_lm
    )
    lm = build_lm()
    lm.load_state_dict(torch.load(with_lm["lm_file"]))
    lm.eval()
    first = CTCPrefixBeamSearch(4, ngram_file, 0.2, 0.7).nbest(modules, encoded, lengths)
    found = search.nbest(modules, encoded, lengths)
    for row, length in enumerate(lengths.tolist()):
        before = {tuple(h.tokens): h.parts for h in first[row]}
        assert {tuple(h.tokens) for h in found[row]} == set(before)
        scores = [h.score for h in found[row]]
        assert scores == sorted(scores, reverse=True)
        frames = encoded[row : row + 1, :length]

        def attention(prefix, frames=frames):
            return modules["seq_lin"](modules["Transformer"].decode(prefix, frames)[0])

        for hypothesis in found[row] if length else []:
            parts = hypothesis.parts
            assert parts["attention"] == pytest.approx(
                one_by_one(attention, hypothesis.tokens), abs=1e-4
            )
            assert parts["lm"] == pytest.approx(one_by_one(lm, hypothesis.tokens), abs=1e-4)
            assert before[tuple(hypothesis.tokens)].items() <= parts.items()
            assert hypothesis.score == pytest.approx(
                0.3 * parts["ctc"] + 0.7 * parts["attention"] + 0.6 * parts["lm"]
                + 0.2 * parts["ngram"] + 0.7 * len(hypothesis.tokens)
            )  # fmt: skip
    assert [h.tokens for h in found[0]] != [h.tokens for h in first[0]]


def test_alone_and_in_a_batch(modules, batch):
    encoded, lengths = batch
    search = RescoredCTCSearch(4)
    together = search(modules, encoded, lengths)
    assert together[2] == []
    for row, length in enumerate(lengths):
        frames = encoded[row : row + 1, :length]
        assert search(modules, frames, lengths[row : row + 1]) == [together[row]]


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
def test_what_is_not_finite_spoils_its_own_utterance_only(modules, batch, value):
    encoded, lengths = batch[0].clone(), batch[1]
    expected = RescoredCTCSearch(4)(modules, encoded, lengths)
    encoded[3, 2, 5] = value
    found = RescoredCTCSearch(4).nbest(modules, encoded, lengths)
    (hypothesis,) = found[3]
    assert (hypothesis.tokens, hypothesis.complete) == ([], False)
    for row in (0, 1, 2, 4):
        assert found[row][0].tokens == expected[row] and found[row][0].complete


def test_ctc_alone_decides_with_all_the_weight(modules, batch):
    found = RescoredCTCSearch(5, ctc_weight=1.0)(modules, *batch)
    assert found == CTCPrefixBeamSearch(5)(modules, *batch)


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match=r"ctc_weight must be a number, in \[0, 1\], got 1.5"):
        RescoredCTCSearch(ctc_weight=1.5)
    for value in ("0.5", None, float("nan"), float("inf")):
        for name in ("ctc_weight", "lm_weight", "ngram_weight", "length_bonus"):
            with pytest.raises(InputError, match=f"{name} must be a number, .*, got {value!r}"):
                RescoredCTCSearch(**{name: value})
    with pytest.raises(InputError, match="beam_size must be a positive integer, got 0"):
        RescoredCTCSearch(beam_size=0)
    with pytest.raises(InputError, match="needs lm"):
        RescoredCTCSearch(lm_file="lm.pt")
    with pytest.raises(InputError, match="there is no such file"):
        RescoredCTCSearch(lm=build_lm, lm_file="lm.pt")


def test_a_file_that_does_not_fit(modules, batch, tmp_path):
    (tmp_path / "lm.pt").write_text("no weights")
    search = RescoredCTCSearch(2, lm=build_lm, lm_file=str(tmp_path / "lm.pt"))
    with pytest.raises(InputError, match="does not fit lm"):
        search(modules, *batch)


@pytest.mark.parametrize("vocabulary", (VOCABULARY - 3, VOCABULARY + 3))
def test_a_language_model_of_another_vocabulary(modules, batch, tmp_path, vocabulary):
    def build():
        return TransformerLM(vocabulary, 8, 2, 1, 0, 8)

    torch.save(build().state_dict(), tmp_path / "lm.pt")
    search = RescoredCTCSearch(2, lm=build, lm_file=str(tmp_path / "lm.pt"), lm_weight=0.5)
    for _ in range(2):
        with pytest.raises(InputError, match=f"is of {vocabulary} tokens, but the model has 9"):
            search(modules, *batch)


def test_a_language_model_is_read_once_and_another_at_once(modules, batch, tmp_path):
    paths = [tmp_path / name for name in ("a.pt", "b.pt")]
    for path in paths:
        torch.save(randomise(build_lm()).state_dict(), path)
    search = RescoredCTCSearch(3, lm=build_lm, lm_file=str(paths[0]), lm_weight=0.5)
    first = search.nbest(modules, *batch)
    paths[0].unlink()
    assert search.nbest(modules, *batch) == first
    search.lm_file = str(paths[1])
    expected = RescoredCTCSearch(3, lm=build_lm, lm_file=str(paths[1]), lm_weight=0.5)
    assert search.nbest(modules, *batch) == expected.nbest(modules, *batch) != first


def test_lengths_that_are_not_those_of_the_frames(modules, batch):
    with pytest.raises(InputError, match="lengths must be 5 integers from 0 to 7 frames, got "):
        RescoredCTCSearch(2)(modules, batch[0], batch[1] + 1)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_frames_of_half_precision(modules, batch, dtype):
    frames, lengths = batch[0].to(dtype), batch[1]
    search = RescoredCTCSearch(4)
    assert search.nbest(modules, frames, lengths) == search.nbest(modules, frames.float(), lengths)
