"""Searches: SpeechBrain's results, and no neighbour has a say."""

import copy

import pytest
import torch
from speechbrain.decoders import CTCScorer, S2STransformerBeamSearcher, ScorerBuilder
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear

from summarymixing.decoding import CTCGreedySearch, JointBeamSearch
from summarymixing.decoding.ngram import NGram, arpa_lines, estimate
from summarymixing.errors import InputError
from summarymixing.models.transformer_asr import TransformerASR

VOCABULARY = 14


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    model = TransformerASR(
        VOCABULARY, 20, d_model=16, nhead=2, num_encoder_layers=2, num_decoder_layers=1, d_ffn=32,
        csgu_linear_units=32,
    )  # fmt: skip
    heads = {n: Linear(input_size=16, n_neurons=VOCABULARY) for n in ("ctc_lin", "seq_lin")}
    for module in (model, *heads.values()):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        module.eval()
    return {"Transformer": model, **heads}


@pytest.fixture(scope="module")
def batch(modules):
    torch.manual_seed(1)
    lengths = torch.tensor([19, 1, 2, 7, 18])
    frames = torch.randn(5, 19, 20)
    with torch.no_grad():
        alone = [
            modules["Transformer"].encode(frames[i : i + 1, :n]) for i, n in enumerate(lengths)
        ]
        encoded = modules["Transformer"].encode(frames, lengths)
    encoded[1, 1:] = torch.nan  # what stands in the padding must not matter
    return encoded, lengths, alone


@pytest.mark.parametrize(
    "search",
    [
        CTCGreedySearch(),
        JointBeamSearch(beam_size=1, ctc_weight=0.0),
        JointBeamSearch(beam_size=3, ctc_weight=0.4),
        JointBeamSearch(beam_size=4, ctc_weight=1.0),
    ],
    ids=["greedy", "attention", "joint", "ctc"],
)
@torch.no_grad()
def test_alone_and_in_a_batch(modules, batch, search):
    encoded, lengths, alone = batch
    together = search(modules, encoded, lengths)
    for hypothesis, frames in zip(together, alone):
        length = torch.tensor([frames.shape[1]])
        assert search(modules, frames, length) == [hypothesis]
    assert any(together)


@torch.no_grad()
def test_greedy_is_speechbrains(modules, batch):
    encoded, lengths, _ = batch
    probabilities = modules["ctc_lin"](encoded.nan_to_num()).log_softmax(-1)
    theirs = ctc_greedy_decode(probabilities, lengths / encoded.shape[1], blank_id=0)
    assert CTCGreedySearch()(modules, encoded.nan_to_num(), lengths) == theirs


@torch.no_grad()
def test_joint_is_speechbrains(modules, batch):
    encoded, lengths, alone = batch
    scorer = ScorerBuilder(full_scorers=[CTCScorer(modules["ctc_lin"], 0, 2)], weights={"ctc": 0.4})
    theirs = S2STransformerBeamSearcher(
        modules=[modules["Transformer"], modules["seq_lin"]], bos_index=1, eos_index=2,
        min_decode_ratio=0.0, max_decode_ratio=1.0, beam_size=3, using_eos_threshold=False,
        length_normalization=True, temperature=1.15, scorer=scorer,
    )  # fmt: skip
    expected = [theirs(frames, torch.ones(1))[0][0] for frames in alone]
    assert JointBeamSearch(beam_size=3, ctc_weight=0.4)(modules, encoded, lengths) == expected


@torch.no_grad()
def test_language_model_takes_part(modules, batch, tmp_path):
    encoded, lengths, _ = batch

    def build():
        return TransformerLM(VOCABULARY, 8, 2, 1, 0, 8)

    torch.manual_seed(3)
    torch.save(build().state_dict(), tmp_path / "lm.ckpt")
    with_lm = JointBeamSearch(
        beam_size=3, lm=build, lm_file=str(tmp_path / "lm.ckpt"), lm_weight=5.0
    )
    without = JointBeamSearch(beam_size=3)
    assert with_lm(modules, encoded, lengths) != without(modules, encoded, lengths)


@torch.no_grad()
def test_ngram_model_takes_part(modules, batch, tmp_path):
    encoded, lengths, _ = batch
    ngrams = estimate([[3, 4, 5], [3, 4, 4], [6, 3]], order=3, vocabulary=VOCABULARY)
    path = tmp_path / "tokens.arpa"
    path.write_text("".join(arpa_lines(ngrams)))
    search = JointBeamSearch(beam_size=4, ctc_weight=0.4, ngram_file=str(path), ngram_weight=0.7)
    model = NGram.read(path, VOCABULARY)
    seen = 0
    for hypotheses in search.nbest(modules, encoded, lengths):
        for found in (one for one in hypotheses if one.complete):
            parts = found.parts
            assert parts["ngram"] == pytest.approx(model.log_probability([found.tokens])[0])
            total = 0.6 * parts["attention"] + 0.4 * parts["ctc"] + 0.7 * parts["ngram"]
            assert found.score == pytest.approx(total / (len(found.tokens) + 1), abs=1e-4)
            seen += 1
    assert seen > 4
    without = JointBeamSearch(beam_size=4, ctc_weight=0.4)
    assert search(modules, encoded, lengths) != without(modules, encoded, lengths)


@torch.no_grad()
def test_models_of_weight_zero_are_left_out(modules, batch, tmp_path):
    """Also one that says of some tokens that they cannot be."""
    encoded, lengths, _ = batch
    path = tmp_path / "tokens.arpa"
    path.write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n-0.3\t3\n-0.3\t</s>\n\n\\end\\\n")
    expected = JointBeamSearch(beam_size=3).nbest(modules, encoded, lengths)
    search = JointBeamSearch(beam_size=3, ngram_file=str(path), ngram_weight=0)
    assert search.nbest(modules, encoded, lengths) == expected
    search.ngram_weight = 0.5
    found = search.nbest(modules, encoded, lengths)
    assert {token for ones in found for token in ones[0].tokens[:-1]} <= {3}


@torch.no_grad()
def test_other_modules_and_settings_count_at_once(modules, batch):
    encoded, lengths, _ = batch
    search = JointBeamSearch(beam_size=3)
    before = search.nbest(modules, encoded, lengths)
    torch.manual_seed(5)
    for name in modules:
        other = copy.deepcopy(modules[name])
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        changed = {**modules, name: other}
        found = search.nbest(changed, encoded, lengths)
        assert found == JointBeamSearch(beam_size=3).nbest(changed, encoded, lengths) != before
    search.beam_size, search.ctc_weight = 4, 0.1
    expected = JointBeamSearch(beam_size=4, ctc_weight=0.1).nbest(modules, encoded, lengths)
    assert search.nbest(modules, encoded, lengths) == expected
    search.temperature = 0
    with pytest.raises(InputError, match="temperature must be a number, positive, got 0"):
        search(modules, encoded, lengths)


@torch.no_grad()
def test_files_are_read_once(modules, batch, tmp_path):
    encoded, lengths, _ = batch
    built = []

    def build():
        built.append(1)
        return TransformerLM(VOCABULARY, 8, 2, 1, 0, 8)

    torch.save(build().state_dict(), tmp_path / "lm.ckpt")
    path = tmp_path / "tokens.arpa"
    path.write_text("".join(arpa_lines(estimate([[3, 4]], order=2, vocabulary=VOCABULARY))))
    search = JointBeamSearch(
        beam_size=2,
        lm=build,
        lm_file=str(tmp_path / "lm.ckpt"),
        lm_weight=0.5,
        ngram_file=str(path),
    )
    first = search(modules, encoded, lengths)
    path.unlink()
    search.beam_size = 2
    assert search(modules, encoded, lengths) == first
    assert len(built) == 2


def test_bad_arguments():
    for name, value, needed in (
        ("beam_size", 0, "a positive integer"),
        ("beam_size", "3", "a positive integer"),
        ("beam_size", 2.5, "a positive integer"),
        ("ctc_weight", 1.5, r"a number, in \[0, 1\]"),
        ("ctc_weight", "0.4", r"a number, in \[0, 1\]"),
        ("temperature", 0, "a number, positive"),
        ("temperature", "warm", "a number, positive"),
        ("lm_temperature", -1, "a number, positive"),
        ("lm_weight", float("nan"), "a number, finite"),
        ("ngram_weight", float("inf"), "a number, finite"),
        ("ngram_weight", None, "a number, finite"),
        ("max_decode_ratio", 0, r"a number, in \(0, 1\]"),
        ("max_decode_ratio", "1", r"a number, in \(0, 1\]"),
        ("max_bytes", "1e9", "a number, positive"),
        ("max_bytes", 0, "a number, positive"),
    ):
        with pytest.raises(InputError, match=f"^{name} must be {needed}, got {value!r}$"):
            JointBeamSearch(**{name: value})
    with pytest.raises(InputError, match="lm_file"):
        JointBeamSearch(lm_file="lm.ckpt")
