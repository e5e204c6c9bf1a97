"""Searches over a transducer, beside naive ones that try everything and remember nothing."""

import functools
import math

import pytest
import torch

from summarymixing.decoding import CTCGreedySearch, TransducerBeamSearch, TransducerGreedySearch
from summarymixing.errors import InputError
from summarymixing.models.transducer import Joiner, Predictor

WIDTH = 5


def make(vocabulary, seed=0, blank=0.0):
    """A transducer with weights far from zero; `blank` is added to the blank's score."""
    torch.manual_seed(seed)
    modules = {
        "predictor": Predictor(vocabulary, 4, 6, num_layers=2),
        "joiner": Joiner(WIDTH, 6, vocabulary, 7),
        "ctc_lin": torch.nn.Linear(WIDTH, vocabulary),
    }
    with torch.no_grad():
        for module in modules.values():
            module.eval()
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=1.0)
        modules["predictor"].embedding.weight[0] = 0
        modules["joiner"].output.bias.zero_()[0] = blank
    return modules


@torch.no_grad()
def scores_after(modules, tokens, frame):
    """Log probabilities of the next symbol, from the whole sequence."""
    predicted, _ = modules["predictor"](torch.tensor([[0, *tokens]]))
    return modules["joiner"](frame, predicted[0, -1]).double().log_softmax(-1).tolist()


def naive_greedy(modules, frames, max_symbols):
    tokens, times = [], []
    for time, frame in enumerate(frames):
        for _ in range(max_symbols):
            scores = scores_after(modules, tokens, frame)
            best = scores.index(max(scores))
            if best == 0:
                break
            tokens.append(best)
            times.append(time)
    return tokens, times


def every_hypothesis(modules, frames, max_symbols):
    """Total log probability of each token sequence, from all of its alignments one by one."""
    found = {}
    after = functools.cache(lambda tokens, time: scores_after(modules, tokens, frames[time]))

    def walk(time, grown, tokens, score):
        if time == len(frames):
            found.setdefault(tokens, []).append(score)
            return
        if grown == max_symbols:
            walk(time + 1, 0, tokens, score)
            return
        scores = after(tokens, time)
        walk(time + 1, 0, tokens, score + scores[0])
        for token in range(1, len(scores)):
            walk(time, grown + 1, (*tokens, token), score + scores[token])

    walk(0, 0, (), 0.0)
    return {
        tokens: torch.tensor(scores, dtype=torch.float64).logsumexp(0).item()
        for tokens, scores in found.items()
    }


@pytest.fixture
def batch():
    """Utterances of several lengths, some of one frame; behind the end more speech, or nan."""
    encoded, lengths = torch.randn(5, 11, WIDTH), torch.tensor([11, 1, 6, 10, 1])
    encoded[1, 1:] = torch.nan
    return encoded, lengths


@pytest.mark.parametrize("max_symbols", [1, 3])
def test_greedy_is_the_naive_one(batch, max_symbols):
    encoded, lengths = batch
    modules = make(9, blank=2.0)
    search = TransducerGreedySearch(max_symbols)
    state = search.initial_state(modules, 5)
    assert all(not tensor.any() for tensor in state.values())
    tokens, times, _ = search.step(modules, encoded, lengths, state)
    for row, length, ours, when in zip(encoded, lengths, tokens, times):
        assert (ours, when) == naive_greedy(modules, row[:length], max_symbols)
    assert len(set(map(len, tokens))) > 2
    assert search(modules, encoded, lengths) == tokens


@pytest.mark.parametrize("search", [TransducerGreedySearch(2), CTCGreedySearch()])
def test_row_of_a_batch_is_what_it_is_alone(batch, search):
    encoded, lengths = batch
    modules = make(9, blank=1.5)
    fresh = search.initial_state(modules, 5)
    tokens, times, state = search.step(modules, encoded, lengths, fresh)
    for row, length in enumerate(lengths):
        fresh = search.initial_state(modules, 1)
        alone = search.step(modules, encoded[row : row + 1, :length], lengths[row : row + 1], fresh)
        assert alone[:2] == ([tokens[row]], [times[row]])
        for name, tensor in alone[2].items():
            torch.testing.assert_close(tensor[0], state[name][row])


@pytest.mark.parametrize("search", [TransducerGreedySearch(2), CTCGreedySearch()])
@pytest.mark.parametrize("pieces", [[1] * 11, [4, 4, 3], [0, 10, 0, 1]])
def test_pieces_give_what_the_whole_gives(batch, search, pieces):
    encoded, lengths = batch
    modules = make(9, blank=1.0)
    state = search.initial_state(modules, 5)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    whole, times, _ = search.step(modules, encoded, lengths, state)
    found, when, begin = [[] for _ in encoded], [[] for _ in encoded], 0
    for piece in pieces:
        here = (lengths - begin).clamp(0, piece)
        tokens, frames, state = search.step(modules, encoded[:, begin : begin + piece], here, state)
        for row in range(5):
            found[row] += tokens[row]
            when[row] += [frame + begin for frame in frames[row]]
        begin += piece
        assert {name: tensor.shape for name, tensor in state.items()} == shapes
    assert found == whole == search(modules, encoded, lengths)
    assert when == times
    assert any(whole)


@pytest.mark.parametrize("search", [TransducerGreedySearch(2), CTCGreedySearch()])
def test_rows_of_a_state_can_be_reordered_dropped_and_joined(batch, search):
    encoded, lengths = torch.randn(4, 10, WIDTH), torch.full((4,), 5)
    modules = make(9, blank=1.0)
    expected = search(modules, encoded, 2 * lengths)
    first, _, state = search.step(
        modules, encoded[:3, :5], lengths[:3], search.initial_state(modules, 3)
    )
    fresh = search.initial_state(modules, 1)
    order = torch.tensor([2, 0])
    state = {name: torch.cat([tensor[order], fresh[name]]) for name, tensor in state.items()}
    rest = torch.stack([encoded[2, 5:], encoded[0, 5:], encoded[3, :5]])
    second, _, state = search.step(modules, rest, lengths[:3], state)
    assert first[2] + second[0] == expected[2]
    assert first[0] + second[1] == expected[0]
    state = {name: tensor[2:] for name, tensor in state.items()}
    third, _, _ = search.step(modules, encoded[3:, 5:], lengths[:1], state)
    assert second[2] + third[0] == expected[3]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("time, max_symbols", [(1, 3), (3, 1), (3, 2)])
def test_beam_that_holds_everything_is_exact(seed, time, max_symbols):
    modules = make(3, seed)
    frames = torch.randn(time, WIDTH)
    expected = every_hypothesis(modules, frames, max_symbols)
    assert sum(map(math.exp, expected.values())) == pytest.approx(1)
    search = TransducerBeamSearch(len(expected), max_symbols, margin=math.inf)
    ((*found,),) = search.nbest(modules, frames.unsqueeze(0), torch.tensor([time]))
    assert len(found) == len(expected)
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    for tokens, score, parts, complete in found:
        assert parts == {"transducer": score} and complete
        assert score == pytest.approx(expected[tuple(tokens)], abs=1e-5)
    best = search(modules, frames.unsqueeze(0), torch.tensor([time]))
    assert best == [list(max(expected, key=expected.get))]


def test_small_beam_finds_more_probable_hypotheses_than_greedy():
    found = {1: [], 4: []}
    for seed in range(10):
        modules = make(3, seed, blank=1.0)
        modules["joiner"].output.weight.data *= 0.3  # less certain
        frames, length = torch.randn(1, 3, WIDTH), torch.tensor([3])
        expected = every_hypothesis(modules, frames[0], 2)
        for size, scores in found.items():
            (tokens,) = TransducerBeamSearch(size, 2)(modules, frames, length)
            scores.append(expected[tuple(tokens)] - max(expected.values()))
    assert sum(found[4]) > 0.5 * sum(found[1])
    assert found[4].count(0) > found[1].count(0)


class LastToken(torch.nn.Embedding):
    """A predictor without memory: the last token as a unit vector."""

    def initial_state(self, batch_size):
        return {name: torch.zeros(batch_size, 1, 1) for name in ("hidden", "cell")}

    def forward(self, tokens, state):
        return torch.nn.functional.one_hot(tokens, 9).float(), state


class CertainJoiner:
    def encoder_proj(self, said):
        return said

    def join(self, said, last):
        return 50 * said - 90 * last + 20 * torch.eye(9)[0]

    __call__ = join


@pytest.mark.parametrize(
    "search",
    [TransducerGreedySearch(3), *(TransducerBeamSearch(size, 3) for size in (1, 2, 7))],
    ids=["greedy", "beam 1", "beam 2", "beam 7"],
)
def test_certain_model_leaves_nothing_to_choose(search):
    """A frame says its token, unless that was the last: collapsed repetitions, every time."""
    modules = {
        "predictor": LastToken(1, 1),
        "joiner": CertainJoiner(),
    }
    encoded = torch.eye(9)[torch.tensor([[3, 3, 0, 4, 3, 8, 8], [5, 0, 0, 5, 1, 2, 2]])]
    assert search(modules, encoded, torch.tensor([7, 6])) == [[3, 4, 3, 8], [5, 1, 2]]


def test_beam_has_no_neighbours(batch):
    encoded, lengths = batch
    modules = make(9)
    search = TransducerBeamSearch(4, 2)
    together = search.nbest(modules, encoded, lengths)
    for row, length, found in zip(encoded, lengths, together):
        alone = search.nbest(modules, row[:length].unsqueeze(0), length.unsqueeze(0))
        assert alone == [found]


@pytest.mark.parametrize(
    "search", [TransducerGreedySearch(4), TransducerBeamSearch(3, 4)], ids=["greedy", "beam"]
)
def test_model_that_never_says_blank_ends(batch, search):
    encoded, lengths = batch
    found = search(make(9, blank=-1000.0), encoded, lengths)
    assert [len(tokens) for tokens in found] == (4 * lengths).tolist()


@pytest.mark.parametrize(
    "search", [TransducerGreedySearch(4), TransducerBeamSearch(3, 4)], ids=["greedy", "beam"]
)
def test_model_that_only_says_blank_finds_nothing(batch, search):
    encoded, lengths = batch
    assert search(make(9, blank=1000.0), encoded, lengths) == [[]] * 5


@pytest.mark.parametrize(
    "search", [TransducerGreedySearch(4), TransducerBeamSearch(3, 4)], ids=["greedy", "beam"]
)
def test_broken_model_ends_too(batch, search):
    encoded, lengths = batch
    assert len(search(make(9), encoded * torch.nan, lengths)) == 5


def test_margin_gives_up_what_is_far_below_the_best(batch):
    encoded, lengths = batch
    modules = make(9)
    every, near = (
        TransducerBeamSearch(9, 2, margin).nbest(modules, encoded, lengths)
        for margin in (math.inf, 2.0)
    )
    for all_found, found in zip(every, near):
        assert found[0].tokens == all_found[0].tokens
        assert found[-1].score >= found[0].score - 2
    assert sum(map(len, near)) < sum(map(len, every))


def test_bad_arguments():
    with pytest.raises(InputError, match="max_symbols_per_frame must be a positive .*, got 0"):
        TransducerGreedySearch(max_symbols_per_frame=0)
    with pytest.raises(InputError, match="beam_size must be a positive integer, got 2.5"):
        TransducerBeamSearch(beam_size=2.5)
    with pytest.raises(InputError, match="margin must be positive .*, got -1"):
        TransducerBeamSearch(margin=-1)
