"""How ONNX Runtime is held to the threads that an engine was given."""

from typing import Any


def session_options(runtime: Any, threads: int) -> Any:
    """Options by which ONNX Runtime uses ``threads`` threads and lets them sleep between two texts."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
