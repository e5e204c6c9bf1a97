"""What several tests share: few threads, commands, a tiny synthetic corpus, a tiny recipe."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]

if not torch.cuda.is_available():  # before Triton is imported, which reads it then
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _reproducible_on_one_thread():
    # Tensors this small are slower on several threads, much slower on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class _SquareTensors(TorchDispatchMode):
    """Notes every tensor with two time axes that any operation makes, in the backward pass too."""

    def __init__(self, time):
        super().__init__()
        self.time, self.found = time, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            if isinstance(output, torch.Tensor) and (
                sum(size >= self.time for size in output.shape) > 1
                or output.numel() >= self.time**2 // 4
            ):
                self.found.append((str(operation), tuple(output.shape)))
        return outputs


@pytest.fixture
def square_tensors():
    """`with square_tensors(time) as square: …`, then `square.found`."""
    return _SquareTensors


@pytest.fixture(scope="session")
def load_script():
    """A command as a module: load_script("score").main(argv)."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Half a minute of synthetic speech in LibriSpeech's layout."""
    from summarymixing.dataio import synthetic

    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.make_corpus(folder, train_minutes=0.4, valid_minutes=0.1, test_minutes=0.1, workers=2)
    return folder


@pytest.fixture(scope="session")
def an4_folder():
    """The folder of AN4, or skip."""
    folder = Path(os.environ.get("SUMMARYMIXING_AN4", ROOT.parent / "shared" / "data" / "an4"))
    if not (folder / "etc").is_dir():
        pytest.skip(f"AN4 is not at {folder}: set SUMMARYMIXING_AN4 to its folder")
    return folder


@pytest.fixture
def tiny(tiny_command):
    return tiny_command


@pytest.fixture(scope="session")
def tiny_command():
    """The demo's recipe as a command line, cut down to a second or two: tiny(folder, **changes)."""

    def command(data_folder, output_folder, **changes):
        overrides = {
            "data_folder": data_folder,
            "output_folder": output_folder,
            "number_of_epochs": 1,
            "output_neurons": 45,
            "d_model": 16,
            "nhead": 2,
            "encoder_nhead": 1,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "d_ffn": 16,
            "csgu_linear_units": 16,
            "cnn_channels": 4,
            "test_beam_size": 2,
            "test_search": "{max_decode_ratio: 0.1}",  # an untrained decoder never ends
            "num_workers": 0,
            "precision": "fp32",
            "hop_length": 10,  # with so few tokens, labels are many
            **changes,
        }
        recipe = ROOT / "recipes" / "Mini" / "hparams" / "branchformer_summarymixing.yaml"
        options = [f"--{key}={value}" for key, value in overrides.items()]
        return [str(recipe), "--noprogressbar", *options]

    return command
