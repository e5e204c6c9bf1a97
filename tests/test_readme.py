"""What the README shows is run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_example_of_the_cell():
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.S)
        if "import SummaryMixing" in block
    )
    names = {}
    exec(example, names)
    assert names["mixed"].shape == (2, 100, 256)


def test_example_of_the_model_names_real_arguments():
    import inspect

    from summarymixing.models.transformer_asr import TransformerASR

    (example,) = re.findall(r"```yaml\n(Transformer: .*?)```", README, re.S)
    arguments = re.findall(r"^  (\w+):", example, re.M)
    assert len(arguments) >= 10
    assert set(arguments) <= set(inspect.signature(TransformerASR).parameters)


def test_files_that_are_named_exist():
    for name in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"(?:recipes|scripts|hparams)/[\w/]+\.(?:py|yaml)", README):
        assert (ROOT / name).exists(), name
