"""Searches by name."""

import pytest
from hyperpyyaml import load_hyperpyyaml

from summarymixing import decoding
from summarymixing.decoding.methods import METHODS, as_search, make_search, parse_search
from summarymixing.errors import InputError

CLASSES = {
    "ctc_greedy": decoding.CTCGreedySearch,
    "ctc_beam": decoding.CTCPrefixBeamSearch,
    "rescore": decoding.RescoredCTCSearch,
    "attention": decoding.JointBeamSearch,
    "joint": decoding.JointBeamSearch,
    "transducer_greedy": decoding.TransducerGreedySearch,
    "transducer_beam": decoding.TransducerBeamSearch,
}
MODULES = dict.fromkeys(("Transformer", "ctc_lin", "seq_lin"))


def test_every_method_is_its_class():
    assert {method: type(make_search(method)) for method in METHODS} == CLASSES
    assert make_search("attention").ctc_weight == 0
    assert make_search("joint").ctc_weight > 0
    assert make_search("rescore", beam_size=7).first_pass.beam_size == 7


def test_in_yaml():
    search = load_hyperpyyaml(
        "test_method: ctc_beam\n"
        "test_search: !apply:summarymixing.decoding.make_search\n"
        "  method: !ref <test_method>\n"
        "  beam_size: 5\n"
    )["test_search"]
    assert isinstance(search, decoding.CTCPrefixBeamSearch) and search.beam_size == 5


def test_from_text():
    search = parse_search("ctc_beam beam_size=5 length_bonus=0.5 ngram_file=null", MODULES)
    assert (search.beam_size, search.length_bonus, search.ngram_file) == (5, 0.5, None)


def test_the_class_of_a_language_model_is_the_recipes(tmp_path):
    (tmp_path / "lm.pt").touch()
    text = f"rescore lm_weight=0.5 lm_file={tmp_path}/lm.pt"
    recipe = decoding.JointBeamSearch(lm=dict)
    search = parse_search(text, MODULES, lambda: recipe)
    assert (search.lm, search.lm_file, search.lm_weight) == (dict, f"{tmp_path}/lm.pt", 0.5)
    for recipe in (decoding.JointBeamSearch(), decoding.CTCGreedySearch()):
        with pytest.raises(InputError, match="lm.pt needs a recipe whose own test_search has an"):
            parse_search(text, MODULES, lambda recipe=recipe: recipe)
    with pytest.raises(InputError, match="lm.pt needs lm"):
        parse_search(text, MODULES)
    with pytest.raises(InputError, match="lm=foo is for a recipe's YAML: here give lm_file alone"):
        parse_search(f"{text} lm=foo", MODULES, lambda: recipe)
    # Without an lm_file the recipe's search, which may lack its files, is not asked for.
    assert parse_search("rescore", MODULES, lambda: 1 / 0).lm is None


def test_a_recipe_has_a_search_or_a_text():
    built = decoding.CTCGreedySearch()
    assert as_search(built, MODULES) is built
    assert as_search("joint ctc_weight=0.1", MODULES).ctc_weight == 0.1


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "beam",
            "there is no search 'beam'; there are ctc_greedy, ctc_beam, rescore, attention, j",
        ),
        ("", "there is no search ''"),
        ("ctc_greedy beam_size=3", "the search ctc_greedy takes no beam_size, and no arguments"),
        ("ctc_beam ctc_weight=1", "ctc_beam takes no ctc_weight, but beam_size, ngram_file"),
        ("attention ctc_weight=0.3", "attention takes no ctc_weight, but beam_size"),
        ("joint beam_size", "METHOD name=value ..., got 'beam_size' in 'joint beam_size'"),
        ("joint beam_size=0", "beam_size must be a positive integer, got 0"),
        ("joint beam_size=many", "beam_size must be a positive integer, got 'many'"),
        ("rescore lm_weight=much", "lm_weight must be a number, finite, got 'much'"),
        ("ctc_beam beam_size=many", "beam_size must be a positive integer, got 'many'"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        parse_search(text, MODULES)


@pytest.mark.parametrize(
    "method, heads, message",
    [
        ("joint", ("predictor", "joiner"), "joint is not for this model; transducer_greedy, tran"),
        ("rescore", ("ctc_lin",), "rescore is not for this model; ctc_greedy, ctc_beam are"),
    ],
)
def test_not_for_every_model(method, heads, message):
    with pytest.raises(InputError, match=message):
        parse_search(method, dict.fromkeys(heads))
