"""A check, without a GPU, that code could be captured in a CUDA graph."""

from torch.utils._python_dispatch import TorchDispatchMode

READS_DEVICE_DATA = {
    f"aten.{name}.default"
    for name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique2", "_unique2")
}


class NoHostSync(TorchDispatchMode):
    """Raises on every operation that would read device data on the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function) in READS_DEVICE_DATA:
            raise RuntimeError(f"host sync: {function}")
        return function(*args, **(kwargs or {}))
