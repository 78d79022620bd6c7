"""How ONNX Runtime is held to the threads that an engine was given."""

from pathlib import Path
from typing import Any

from stentor.core.lazy import load
from stentor.engines.host import FETCH_AGAIN, BadModel

# It has an exception for each of its statuses, and none above them.
_STATUSES = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile", "NotImplemented")


def session_options(runtime: Any, threads: int) -> Any:
    """Options by which ONNX Runtime uses ``threads`` threads and lets them sleep between two texts."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(runtime: Any, path: Path, threads: int) -> Any:
    """The model at ``path``, to be run by ``threads`` threads of the processor. Raises BadModel."""
    statuses = load("onnxruntime.capi.onnxruntime_pybind11_state")
    problems = tuple(getattr(statuses, name) for name in _STATUSES if hasattr(statuses, name))
    try:
        return runtime.InferenceSession(
            str(path), session_options(runtime, threads), providers=["CPUExecutionProvider"]
        )
    except (RuntimeError, ValueError, OSError, *problems) as error:
        words = str(error).splitlines()[0].rstrip(".")
        raise BadModel(f"{path} can't be loaded: {words}. {FETCH_AGAIN}") from None
