"""Time in turns, peak memory and floating point operations of steps."""

import gc
import math
import sys
import time
from dataclasses import asdict, replace

import torch
import torch._dynamo
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from summarymixing.benchmark.cases import PRODUCTS, Side
from summarymixing.errors import InputError, one_line
from summarymixing.ops.memory import is_out_of_memory

OUT_OF_MEMORY = "out of memory"
SECONDS_A_TURN = 0.1  # shorter steps are repeated within their turn


class DeviceLostError(RuntimeError):
    """A side failed in such a way that the device takes no more work from this process.

    Arguments
    ---------
    row : dict
        Of the side, with "failed"; what else took turns with it is not known to be right.
    """

    def __init__(self, row):
        super().__init__(f"{row['mixer']}: {row['failed']}")
        self.row = row


def limit_memory(share=0.9):
    """On Linux: what is more than the free memory fails in this process, as on a GPU.

    Otherwise the kernel would end the process, and with it what was measured.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/meminfo") as meminfo, open("/proc/self/statm") as statm:
        sizes = dict(line.split(":") for line in meminfo)
        data = int(statm.read().split()[5]) * resource.getpagesize()
    free = int(sizes["MemAvailable"].split()[0]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = int(data + share * free)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _why_failed(error):
    """In one line, `OUT_OF_MEMORY` for all that is."""
    # cuDNN's words when there is no room for any workspace, and all sides run where there is.
    if is_out_of_memory(error) or "unable to find an engine to execute" in str(error):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {one_line(error, 200)}"


def seconds_of(step, device, calls=1):
    """Seconds of one call, as the mean of several."""
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(calls):
        step()
    _synchronize(device)
    return (time.perf_counter() - began) / calls


def peak_bytes(step, device):
    """The most memory that a call holds at once, beyond what was held before it.

    Counted by the device's allocator: on the CPU by all that PyTorch's allocates and frees, also
    within operations and compiled graphs.

    Example
    -------
    >>> import torch
    >>> peak_bytes(lambda: torch.ones(1000) + torch.ones(1000), "cpu")
    12000
    """
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def flops(case, mixer):
    """Floating point operations of a step's products and convolutions, two for a multiply-add.

    Padding is in it, since it is computed; what an activation checkpoint computes again is, too.

    Example
    -------
    >>> from summarymixing.benchmark.cases import Case
    >>> case = Case("conformer", "layers", 1, 1, 1, 1, step="forward", d_model=16)
    >>> flops(case, "products") == 2 * 25 * 2 * 16 * 64  # two products of 25 frames
    True
    """
    # Tensors without content have no autocast, and their type changes no count.
    step = Side(replace(case, precision="float32"), mixer, "meta")
    step.call = step.model  # not the compiled one
    backward = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        step()
    return counter.get_total_flops()


def _convolution_backward(gradient, x, weight, *_, out_shape):
    # torch's formula takes a depthwise convolution for a dense one. Of input and weight, what has
    # a gradient costs what the forward pass costs.
    once = 2 * math.prod(gradient) * math.prod(weight[1:])
    return once * sum(shape is not None for shape in out_shape[:2])


# All compiled sides share one function: torch would soon give up and run them uncompiled.
@torch._dynamo.config.patch(recompile_limit=256, fail_on_recompile_limit_hit=True)
def measure(case, mixers, device="cpu", repeats=5, seed=0):
    """Measures the sides of a case, which take turns, and the matrix products beside them.

    Arguments
    ---------
    case : Case
    mixers : list of str
    device : str
    repeats : int
        Turns that count; there is one before them, which warms up.
    seed : int

    Returns
    -------
    list of dict
        A row for each mixer and one for `PRODUCTS`: the case, "mixer", "audio" (seconds in the
        batch), and either "failed", why, or "times" (seconds of a step, one a turn), "peak_bytes"
        (of a step, its gradients and the parameters) and "flops".

    Raises
    ------
    DeviceLostError

    Example
    -------
    >>> from summarymixing.benchmark.cases import Case
    >>> case = Case("conformer", "layers", 1, 1, 2, 0.8, step="forward", d_model=16)
    >>> rows = measure(case, ["none", "SummaryMixing"], repeats=3)
    >>> [(row["mixer"], len(row["times"])) for row in rows]
    [('products', 3), ('none', 3), ('SummaryMixing', 3)]
    """
    calls = {}
    torch.compiler.reset()  # no graph that an earlier case left

    def prepare(mixer):
        side = Side(case, mixer, device, seed)
        seconds_of(side, device)  # warms up, and compiles
        side.forget()  # gradients that are freed within the step would be taken off its peak
        peak = side.parameter_bytes + peak_bytes(side, device)
        calls[mixer] = max(1, round(SECONDS_A_TURN / seconds_of(side, device)))
        side.forget()
        return side, {"peak_bytes": peak, "flops": flops(case, mixer), "times": []}

    def turn(side, row):
        row["times"].append(seconds_of(side, device, calls[row["mixer"]]))
        side.forget()

    about = {**asdict(case), "audio": case.audio}
    return take_turns([PRODUCTS, *mixers], about, prepare, turn, repeats, device)


def take_turns(mixers, about, prepare, turn, repeats, device):
    """Rows of sides that take turns; one that fails is out, and the others go on.

    Arguments
    ---------
    mixers : list of str
    about : dict
        What stands in every row, beside its "mixer".
    prepare : callable
        mixer → (side, dict): what takes the turns, and the beginning of its row.
    turn : callable
        (side, row): adds to the row.
    repeats : int
    device : str

    Returns
    -------
    list of dict
        With "failed", why, for those that did.

    Raises
    ------
    DeviceLostError
    """
    rows, sides = {}, {}

    def begin(mixer):
        sides[mixer], facts = prepare(mixer)
        rows[mixer] = {**about, "mixer": mixer, **facts}

    def attempt(mixer, function):
        try:
            function(mixer)
            return
        except InputError:
            raise
        except Exception as error:
            reason = _why_failed(error)
        # Outside the handler, which holds on to every frame of the failed step.
        rows[mixer] = {**about, "mixer": mixer, "failed": reason}
        sides.pop(mixer, None)
        try:
            _release(device)
        except RuntimeError as error:
            raise DeviceLostError(rows[mixer]) from error

    for mixer in mixers:
        attempt(mixer, begin)
    for _ in range(repeats):
        for mixer in list(sides):
            attempt(mixer, lambda mixer: turn(sides[mixer], rows[mixer]))
    sides.clear()
    _release(device)
    return list(rows.values())


def _synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _release(device):
    gc.collect()
    _synchronize(device)
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
