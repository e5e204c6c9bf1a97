"""The joint search: SpeechBrain's hypotheses and scores, for each utterance as if it were alone."""

import itertools

import pytest
import torch
from speechbrain.decoders import (
    CTCScorer,
    LengthScorer,
    RNNLMScorer,
    S2STransformerBeamSearcher,
    ScorerBuilder,
    TransformerLMScorer,
)
from speechbrain.decoders.scorer import CoverageScorer
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear

from summarymixing.decoding import BeamSearcher, JointBeamSearch
from summarymixing.errors import InputError
from summarymixing.models.incremental import AttentionCache
from summarymixing.models.transformer_asr import TransformerASR

WIDTH = 8
LENGTHS = (7, 2, 5, 3, 6, 4, 2, 6, 5, 3, 8)


class Models:
    """Random models, with large weights: sure of themselves, they end early and repeat tokens."""

    def __init__(self, seed, vocabulary, **arguments):
        torch.manual_seed(seed)
        self.model = TransformerASR(
            vocabulary, 20, d_model=WIDTH, nhead=2, num_encoder_layers=1, num_decoder_layers=2,
            d_ffn=16, csgu_linear_units=16, normalize_before=bool(seed % 2), **arguments,
        )  # fmt: skip
        self.ctc, self.output = (
            Linear(input_size=WIDTH, n_neurons=vocabulary) for _ in range(2)
        )  # fmt: skip
        self.lm = TransformerLM(
            vocabulary, WIDTH, 2, 2, 0, 16, normalize_before=bool(seed % 2),
            d_embedding=6 if seed % 2 else None,
        )  # fmt: skip
        self.rnn = RNNLM(vocabulary, 6, rnn_neurons=6, dnn_neurons=6, return_hidden=True)
        for module in (self.model, self.ctc, self.output, self.lm, self.rnn):
            for parameter in module.eval().parameters():
                torch.nn.init.normal_(parameter, std=0.5)
        self.modules = [self.model, self.output]
        self.by_name = {"Transformer": self.model, "seq_lin": self.output, "ctc_lin": self.ctc}


def encode(lengths, seed=0):
    """Encoder output in a batch, with what must not matter in its padding."""
    encoded = torch.randn(len(lengths), max(lengths), WIDTH, generator=seeded(seed))
    for row, length in zip(encoded, lengths):
        row[length:] = torch.nan
    return encoded, torch.tensor(lengths)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def scorers(models, ctc, lm, scale=1.5, length=0.0):
    """A ScorerBuilder; None without scorers."""
    full, partial, weights = [], [], {}
    if "transformer" in lm:
        full.append(TransformerLMScorer(models.lm, temperature=1.15))
        weights["transformerlm"] = 0.6
    if ctc:
        (partial if ctc == "partial" else full).append(CTCScorer(models.ctc, 0, 2))
        weights["ctc"] = 1.0 if ctc == "only" else 0.4
    if "rnn" in lm:
        full.append(RNNLMScorer(models.rnn, temperature=0.9))
        weights["rnnlm"] = 0.3
    if length:
        full.append(LengthScorer(models.output.w.out_features))
        weights["length"] = length
    return weights and ScorerBuilder(weights, full, partial, scale)


def searchers(models, scorer, **changes):
    """SpeechBrain's and ours, with the same arguments."""
    arguments = {
        "modules": models.modules,
        "bos_index": 1,
        "eos_index": 2,
        "min_decode_ratio": 0.0,
        "max_decode_ratio": 1.0,
        "beam_size": 4,
        "scorer": scorer or None,
        "using_eos_threshold": False,
        **changes,
    }
    return S2STransformerBeamSearcher(**arguments), BeamSearcher(**arguments)


def close_to(value):
    """Of blocked tokens the first digits alone."""
    return pytest.approx(value, rel=1e-4 if value < -1e19 else 0, abs=1e-4)


def compare(theirs, ours, lengths, seed=0):
    """All hypotheses of SpeechBrain's searcher for each utterance alone, and ours for the batch."""
    encoded, counts = encode(lengths, seed)
    together = [x.tolist() for x in ours(encoded, counts)]
    longest = len(together[0][0][0])
    cases = []
    for row, length in enumerate(lengths):
        alone = theirs(encoded[row : row + 1, :length].clone(), torch.ones(1))
        tokens, ends, scores, log_probs = (x[0] for x in alone)
        for place, (score, end) in enumerate(zip(scores.tolist(), ends.tolist())):
            count = round(end * tokens.shape[1]) + 1
            assert together[0][row][place][:count] == tokens[place, :count].tolist()
            assert together[1][row][place] * longest == pytest.approx(count - 1)
            assert together[2][row][place] == close_to(score)
            expected = log_probs[place, :count].tolist()
            for found, value in zip(together[3][row][place], expected):
                assert found == close_to(value)
        cases.append((length, tokens[0][: round(ends[0].item() * tokens.shape[1]) + 1].tolist()))
    return cases


CASES = list(itertools.product((1, 4, 10, 66), (None, "full", "partial")))


@pytest.mark.parametrize("beam_size, ctc", CASES)
@torch.no_grad()
def test_is_speechbrains_alone(beam_size, ctc):
    """44 cases each, 528 in all: of half of them all hypotheses, of the others the best."""
    cases = []
    lms = ((), ("transformer",), ("rnn",), ("transformer", "rnn"))
    for i, lm in enumerate(lms):
        # Vocabularies smaller than the beam, where blocked tokens are chosen too, and larger.
        models = Models(i, vocabulary=(6, 90)[(i + beam_size) % 2])
        normalized = i != 2
        theirs, ours = searchers(
            models,
            scorers(models, ctc, lm, scale=(1, 1.5, 2)[i % 3], length=0.0 if normalized else 0.7),
            beam_size=beam_size,
            temperature=(1.0, 1.15)[i % 2],
            min_decode_ratio=(0.0, 0.4)[i == 1],
            max_decode_ratio=(1.0, 0.7)[i == 3],
            using_eos_threshold=i > 1,
            eos_threshold=1.2,
            length_normalization=normalized,
            return_topk=True,
            topk=beam_size if i % 3 == 0 else 1,
        )
        cases += compare(theirs, ours, LENGTHS, seed=i)
    assert len(cases) == 44
    assert any(len(tokens) < length for length, tokens in cases), "none ends early"
    assert any(tokens[-1] != 2 for _, tokens in cases), "none is cut"


@torch.no_grad()
def test_ctc_alone_is_speechbrains_and_rightly_so_if_wanted():
    models = Models(3, vocabulary=30)
    scorer = scorers(models, "only", ())
    theirs, ours = searchers(models, scorer, return_topk=True, topk=4)
    compare(theirs, ours, LENGTHS)
    # Of all with one token at most, the one that is the likeliest.
    encoded, lengths = encode([2, 2, 2], seed=2)
    found = JointBeamSearch(66, ctc_weight=1.0).nbest(models.by_name, encoded, lengths)
    for frames, (best, *_) in zip(encoded, found):
        log_probs = models.ctc(frames).log_softmax(-1)
        expected = {
            tokens: ctc_log_probability(log_probs, tokens)
            for count in range(2)
            for tokens in itertools.product(range(3, 30), repeat=count)
        }
        score = {tokens: value / (len(tokens) + 1) for tokens, value in expected.items()}
        if best.complete:
            assert tuple(best.tokens) == max(score, key=score.get)
            assert best.parts["ctc"] == pytest.approx(expected[tuple(best.tokens)], abs=1e-4)


def ctc_log_probability(log_probs, tokens):
    return -torch.nn.functional.ctc_loss(
        log_probs.unsqueeze(1), torch.tensor([tokens]), [len(log_probs)], [len(tokens)],
        reduction="sum",
    ).item()  # fmt: skip


@torch.no_grad()
def test_summary_decoder_is_speechbrains():
    models = Models(1, vocabulary=30, decoder_mixer="SummaryMixing")
    theirs, ours = searchers(models, scorers(models, "full", ()), return_topk=True, topk=4)
    compare(theirs, ours, LENGTHS)


@pytest.mark.parametrize("ctc", (None, "full", "partial"))
@torch.no_grad()
def test_what_ends_with_the_last_step_is_speechbrains(ctc):
    """Without length_normalization too: some of the topk end in the very step that is the last."""
    for seed in range(4):
        models = Models(seed, vocabulary=6)
        theirs, ours = searchers(
            models, scorers(models, ctc, ()), beam_size=7, return_topk=True, topk=4,
            length_normalization=False, max_decode_ratio=0.5,
        )  # fmt: skip
        compare(theirs, ours, LENGTHS, seed)


@torch.no_grad()
def test_best_alone():
    """Without `return_topk`: lists of tokens, and lengths of what was not padded."""
    models = Models(4, vocabulary=30)
    theirs, ours = searchers(models, scorers(models, "full", ("rnn",)))
    encoded, lengths = encode([7])
    for a, b in zip(theirs(encoded, torch.ones(1)), ours(encoded, torch.ones(1))):
        assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-4)


@torch.no_grad()
def test_nbest_has_every_models_own_score():
    """Against each model's score of the whole hypothesis, computed at once."""
    models = Models(6, vocabulary=20)
    _, ours = searchers(models, scorers(models, "full", ("transformer",)), beam_size=10)
    encoded, lengths = encode(LENGTHS)
    complete = 0
    for frames, length, found in zip(encoded, LENGTHS, ours.nbest(encoded, lengths)):
        frames = frames[:length]
        assert [one.score for one in found] == sorted((x.score for x in found), reverse=True)
        assert len({tuple(one.tokens) for one in found}) == len(found)
        for one in found:
            weighted = 0.6 * one.parts["attention"] + 0.4 * one.parts["ctc"] + 0.6 * one.parts["lm"]
            assert one.score * (len(one.tokens) + 1) == pytest.approx(weighted, abs=1e-3)
            if not one.complete:
                assert len(one.tokens) == length - 1  # it lost the last
                continue
            complete += 1
            inputs, targets = torch.tensor([[1, *one.tokens]]), torch.tensor([*one.tokens, 2])
            decoded, _ = models.model.decode(inputs, frames.unsqueeze(0))
            rows = torch.arange(len(targets))
            for name, logits in (
                ("attention", models.output(decoded)[0]),
                ("lm", models.lm(inputs)[0] / 1.15),
            ):
                expected = logits.log_softmax(-1)[rows, targets].sum().item()
                assert one.parts[name] == pytest.approx(expected, abs=1e-3)
            log_probs = models.ctc(frames).log_softmax(-1)
            expected = ctc_log_probability(log_probs, one.tokens)
            assert one.parts["ctc"] == pytest.approx(expected, abs=1e-3)
    assert complete > 20


@torch.no_grad()
def test_two_language_models_are_one_part():
    models = Models(6, vocabulary=20)
    _, ours = searchers(models, scorers(models, None, ("transformer", "rnn")))
    best = ours.nbest(*encode([6]))[0][0]
    inputs = torch.tensor([[1, *best.tokens]])
    rnn = RNNLM(20, 6, rnn_neurons=6, dnn_neurons=6).eval()  # which takes whole sentences
    rnn.load_state_dict(models.rnn.state_dict())
    log_probs = (models.lm(inputs)[0] / 1.15).log_softmax(-1)
    log_probs = log_probs + (rnn(inputs)[0] / 0.9).log_softmax(-1)
    # What the limit cut off is in the score, but it is not known what it was.
    known = log_probs[torch.arange(len(best.tokens)), best.tokens].sum()
    last = [2] if best.complete else range(20)
    totals = known + log_probs[-1, list(last)]
    assert (totals - best.parts["lm"]).abs().min() < 1e-3
    assert set(best.parts) == {"attention", "lm"}


@torch.no_grad()
def test_utterances_leave_when_they_are_finished(monkeypatch):
    models = Models(2, vocabulary=30)
    _, ours = searchers(models, scorers(models, "full", ("transformer",)))
    seen, step = [], ours.decoder.step
    monkeypatch.setattr(
        ours.decoder,
        "step",
        lambda tokens, state: (seen.append(len(tokens)), step(tokens, state))[1],
    )
    ours.nbest(*encode((6, 2, 4)))
    assert seen[0] == 12 and seen[2] <= 8 and seen[-1] <= 4
    assert len(seen) <= 6


@pytest.mark.parametrize("ctc_weight", (0.0, 0.4, 1.0))
@torch.no_grad()
def test_always_ends(ctc_weight):
    """No frames, one frame, silence, a CTC that says nothing, models that are broken."""
    models = Models(2, vocabulary=30)
    search = JointBeamSearch(5, ctc_weight=ctc_weight)
    encoded, _ = encode((6, 6, 6))
    nothing, one, all_of_it = search.nbest(models.by_name, encoded, torch.tensor([0, 1, 6]))
    assert nothing[0].tokens == [] and not nothing[0].complete and len(nothing) == 1
    assert set(nothing[0].parts) == set(one[0].parts)
    (alone,) = search.nbest(models.by_name, encoded[1:2, :1], torch.tensor([1]))
    assert one[0].tokens == alone[0].tokens == [] and len(all_of_it[0].tokens) <= 6
    assert one[0].score == pytest.approx(alone[0].score, abs=1e-5)
    assert search(models.by_name, encoded[:, :0], torch.tensor([0, 0, 0])) == [[]] * 3
    (silent,) = search.nbest(models.by_name, torch.zeros(1, 6, WIDTH), torch.tensor([6]))
    assert all(len(x.tokens) <= 6 and -1e3 < x.score < 0 for x in silent)
    models.ctc.w.bias[0] = 1e4
    found = search.nbest(models.by_name, encoded, torch.tensor([6, 6, 6]))
    if ctc_weight:
        assert [ones[0].tokens for ones in found] == [[]] * 3
        assert found[0][0].parts["ctc"] == pytest.approx(0, abs=1e-3)


@torch.no_grad()
def test_not_a_number_is_of_one_utterance_alone(caplog):
    models = Models(2, vocabulary=30)
    search = JointBeamSearch(5)
    encoded, lengths = encode((6, 5, 6))
    expected = search.nbest(models.by_name, encoded, lengths)
    for value in (torch.nan, torch.inf):
        broken = encoded.clone()
        broken[1, 4, 0] = value
        first, (empty,), last = search.nbest(models.by_name, broken, lengths)
        assert [found.tokens for found in first] == [found.tokens for found in expected[0]]
        assert [found.tokens for found in last] == [found.tokens for found in expected[2]]
        assert empty.tokens == [] and not empty.complete
        assert "row 1: the encoder's output is not finite" in caplog.text
    assert expected[1][0].tokens != []


@torch.no_grad()
def test_encoder_output_of_half_the_width():
    models = Models(2, vocabulary=30)
    search = JointBeamSearch(5)
    encoded, lengths = encode((6, 5, 6))
    for kind in (torch.float16, torch.bfloat16):
        narrow = encoded.to(kind)
        expected = search.nbest(models.by_name, narrow.float(), lengths)
        assert search.nbest(models.by_name, narrow, lengths) == expected


def test_bad_lengths():
    models = Models(2, vocabulary=30)
    encoded, _ = encode((6, 5, 6))
    for lengths in ([6, 7, 6], [6, -1, 6], [6, 5]):
        with pytest.raises(InputError, match="lengths must be 3 numbers from 0 to 6"):
            JointBeamSearch(5)(models.by_name, encoded, torch.tensor(lengths))


@torch.no_grad()
def test_models_of_other_tokens():
    models, other = Models(2, vocabulary=30), Models(2, vocabulary=31)
    for lm in ("transformer", "rnn"):
        _, ours = searchers(models, scorers(other, None, (lm,)))
        with pytest.raises(InputError, match='"lm" has scores of 31 tokens.* of 30: '):
            ours.nbest(*encode([3]))
    _, ours = searchers(models, scorers(other, "full", ()))
    with pytest.raises(InputError, match='"ctc" has scores of 31 tokens.* of 30: '):
        ours.nbest(*encode([3]))


@torch.no_grad()
def test_long_outputs_are_speechbrains(monkeypatch):
    """So long that tokens of hypotheses that were given up make room for others."""
    rooms, make_room = [], AttentionCache._make_room
    monkeypatch.setattr(
        AttentionCache, "_make_room", lambda self: (rooms.append(make_room(self)), rooms[-1])[1]
    )
    models = Models(1, vocabulary=20)
    models.output.w.bias[2] = models.lm.output_proj.layers[-1].w.bias[2] = -20
    theirs, ours = searchers(
        models, scorers(models, "full", ("transformer",)), return_topk=True, topk=4
    )
    cases = compare(theirs, ours, (60, 45))
    assert all(len(tokens) >= 40 for _, tokens in cases)
    assert len([kept for kept in rooms if kept]) >= 4  # both networks, more than once


@torch.no_grad()
def test_what_never_ends_is_cut_and_says_so():
    models = Models(2, vocabulary=30)
    models.output.w.bias[2] = -1000
    encoded, lengths = encode((6, 3))
    for found, length in zip(JointBeamSearch(4).nbest(models.by_name, encoded, lengths), (6, 3)):
        assert not any(one.complete for one in found)
        assert len(found[0].tokens) == length - 1


@torch.no_grad()
def test_memory_is_bounded(monkeypatch, caplog):
    models = Models(2, vocabulary=30)
    scorer = scorers(models, "full", ("transformer",))
    _, ours = searchers(models, scorer)
    expected = ours.nbest(*encode(LENGTHS))
    batches, search = [], ours._search

    def counted(encoded, lengths):
        batches.append(len(lengths))
        return search(encoded, lengths)

    monkeypatch.setattr(ours, "_search", counted)

    def same(found):
        for ones, others in zip(found, expected):
            assert [one.tokens for one in ones] == [one.tokens for one in others]
            assert [x.score for x in ones] == pytest.approx([x.score for x in others], abs=1e-4)

    ours.max_bytes = 2 * ours.bytes_needed(max(LENGTHS))
    same(ours.nbest(*encode(LENGTHS)))
    assert batches[0] == 2 and max(batches[1:]) > 2  # shorter ones need less
    # What does not fit alone is not found, and the others are.
    ours.max_bytes = ours.bytes_needed(7)
    found, longest = ours.nbest(*encode(LENGTHS)), LENGTHS.index(8)
    (empty,) = found[longest]
    assert empty.tokens == [] and not empty.complete
    assert set(empty.parts) == {"attention", "ctc", "lm"}
    message = f"row {longest}: an utterance of 8 frames may need {ours.bytes_needed(8)} bytes"
    assert message in caplog.text and f"max_bytes={ours.max_bytes}" in caplog.text
    found[longest] = expected[longest]
    same(found)

    ours.max_bytes, batches[:] = None, []

    def small(encoded, lengths):
        if len(lengths) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return counted(encoded, lengths)

    monkeypatch.setattr(ours, "_search", small)
    same(ours.nbest(*encode(LENGTHS)))
    assert sum(batches) == len(LENGTHS)

    def none(encoded, lengths):
        raise RuntimeError("std::bad_alloc")  # as on the CPU

    monkeypatch.setattr(ours, "_search", none)
    caplog.clear()
    assert all(ones[0].tokens == [] for ones in ours.nbest(*encode(LENGTHS)))
    assert len(caplog.records) == len(LENGTHS)


@pytest.mark.parametrize("vocabulary, lm", [(30, ()), (9, ("transformer", "rnn")), (400, ("rnn",))])
@torch.no_grad()
def test_memory_is_at_most_what_is_said(vocabulary, lm):
    """Against all that torch takes and gives back while it searches."""
    models = Models(2, vocabulary=vocabulary)
    for beam_size, frames, scale in ((2, 60, 1), (10, 10, 1), (20, 40, 1), (6, 30, 1e3)):
        models.ctc.w.weight.mul_(scale)  # sure of itself: what underflows is computed again
        _, ours = searchers(models, scorers(models, "full", lm), beam_size=beam_size)
        encoded, lengths = encode([frames])
        ours.nbest(encoded, lengths)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            ours.nbest(encoded, lengths)
        events = profile.profiler.kineto_results.events()
        changes = [(x.start_ns(), x.nbytes()) for x in events if x.name() == "[memory]"]
        totals = itertools.accumulate(size for _, size in sorted(changes, key=lambda x: x[0]))
        peak, needed = max(totals), ours.bytes_needed(frames)
        assert needed / 20 < peak <= needed


def test_bad_arguments():
    models = Models(0, vocabulary=9)

    def build(scorer=None, **changes):
        arguments = {"min_decode_ratio": 0.0, "max_decode_ratio": 1.0, "beam_size": 4, **changes}
        indices = {"bos_index": 1, "eos_index": 2, **changes}
        return BeamSearcher(modules=models.modules, scorer=scorer, **(arguments | indices))

    for message, changes in {
        "beam_size must be a positive integer, got 0": {"beam_size": 0},
        "topk must be at most beam_size=4, got 5": {"topk": 5},
        "temperature must be a number, positive, got 0": {"temperature": 0},
        "max_decode_ratio is needed, got min_decode_ratio=2": {"min_decode_ratio": 2},
        "using_max_attn_shift is for recurrent decoders": {"using_max_attn_shift": True},
        "max_bytes must be a number, positive, got -1": {"max_bytes": -1},
        "max_bytes must be a number, positive, got '1e9'": {"max_bytes": "1e9"},
        "temperature must be a number, positive, got 'warm'": {"temperature": "warm"},
        "max_decode_ratio must be a number, finite, got nan": {"max_decode_ratio": float("nan")},
        "ngram_weight must be a number, finite, got inf": {"ngram_weight": float("inf")},
    }.items():
        with pytest.raises(InputError, match=message):
            build(**changes)
    ctc = CTCScorer(models.ctc, 0, 2, ctc_window_size=3)
    with pytest.raises(InputError, match="ctc_window_size must be 0"):
        build(ScorerBuilder({"ctc": 0.4}, [ctc]))
    with pytest.raises(InputError, match="must be different tokens for CTC"):
        build(ScorerBuilder({"ctc": 0.4}, [CTCScorer(models.ctc, 0, 2)]), bos_index=2)
    with pytest.raises(InputError, match="scorer coverage .*CoverageScorer.* is not supported"):
        build(ScorerBuilder({"coverage": 1.0}, [CoverageScorer(9)]))
    with pytest.raises(InputError, match="length_normalization must be False"):
        build(ScorerBuilder({"length": 1.0}, [LengthScorer(9)]))
    rnn = RNNLM(9, 6, rnn_neurons=6, dnn_neurons=6)
    with pytest.raises(InputError, match="return_hidden: True"):
        build(ScorerBuilder({"rnnlm": 1.0}, [RNNLMScorer(rnn)]))
