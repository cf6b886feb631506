"""On a CPU: a network's operations are recorded once for each batch size and repeated without Python.

Python between a small network's operations takes a fifth of its time, and holds up other threads that need the interpreter:
the server's loop, and the other half of a batch. PyTorch calls the recorder deprecated in favour of `torch.compile`, which
wants a C++ compiler and minutes to start, and `torch.export`, whose graphs Python runs again. What it gives is in
docs/performance.md.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from diffusion.manifest import NetworkConfig
from diffusion.uvit import UViT

log = logging.getLogger(__name__)

Evaluate = Callable[[Tensor, Tensor, Tensor], Tensor]
RUNS = 3
"""Repetitions before a recording is trusted: the first two arrange its operations."""
_RECORDING = Lock()
"""Held while recording: PyTorch records in one thread at a time."""


class Recorder:
    """Makes recordings; networks of one architecture share them, each with its own weights."""

    def __init__(self) -> None:
        self._known: dict[tuple[NetworkConfig, torch.dtype, int], torch.jit.ScriptModule | None] = {}
        """(architecture, type of latents, batch size) -> a recording without weights, None where there can be none."""

    def record(self, network: UViT, z: Tensor, logsnr: Tensor, condition: Tensor) -> Evaluate:
        """Return what evaluates the network at this batch size: a recording, or where that has other bits the network itself."""
        key = network.config, z.dtype, len(z)
        with _RECORDING, torch.inference_mode(False), torch.no_grad():
            # a recording must not keep inference tensors
            z, logsnr, condition = z.clone(), logsnr.clone(), condition.clone()
            if key not in self._known:
                self._known[key] = _recording(network, z, logsnr, condition)
            recording = self._known[key]
            return network if recording is None else _of(recording, network)


@cache
def recorder() -> Recorder:
    """Return the process's recorder: PyTorch keeps recordings for good, so families that come and go share them."""
    return Recorder()


class RecordedNetwork:
    """A network for evaluation on a CPU, recorded at each batch size at the latest when it first comes."""

    def __init__(self, network: UViT, recorder: Recorder):
        self._network, self._recorder = network, recorder
        self._ways: dict[int, Evaluate] = {}

    @property
    def config(self) -> NetworkConfig:
        """All that is needed to build the network."""
        return self._network.config

    def __call__(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        """Return v of latents z (B, C, H, W) at logsnr (B,) under conditions (B, columns): the network's bits."""
        if len(z) not in self._ways:
            self.record(z, logsnr, condition)
        return self._ways[len(z)](z, logsnr, condition)

    def record(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> None:
        """Record this batch size, of whatever samples."""
        self._ways[len(z)] = self._recorder.record(self._network, z, logsnr, condition)


def _recording(network: UViT, z: Tensor, logsnr: Tensor, condition: Tensor) -> torch.jit.ScriptModule | None:
    """Record an evaluation, and keep that only where it gives the network's bits for other samples too."""
    other = (z.flip(-1) + 0.5, logsnr + 0.25, torch.zeros_like(condition))
    expected = network(*other)  # outside: what is wrong with the network itself is raised
    why = "a recording has other bits"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation, and that a recording holds for one batch size
            recording = copy.deepcopy(torch.jit.trace(network, (z, logsnr, condition), check_trace=False))
        for parameter in recording.parameters():  # of the copy: the network's own are those of what was copied
            parameter.data = parameter.new_empty(0)
        own = _of(recording, network)
        if all(torch.equal(own(*other), expected) for _ in range(RUNS)):
            return recording
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
    log.warning("batches of %d are evaluated operation by operation: %s", len(z), why)
    return None


def _of(recording: torch.jit.ScriptModule, network: UViT) -> torch.jit.ScriptModule:
    """The same operations on a network's own weights, which are not copied."""
    own, weights = copy.deepcopy(recording), network.state_dict()
    for name, parameter in own.named_parameters():
        parameter.data = weights[name]
    return own
