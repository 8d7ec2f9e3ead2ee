"""Sessions of ONNX Runtime on the processor: the one place that opens them."""

from __future__ import annotations

from typing import Any


def session_of(model: bytes | str, threads: int = 0, *, optimise: bool = True, spin: bool = True) -> Any:
    """A session of a model (bytes, or the path of its file) whose `run(outputs, {input: array})` answers arrays.

    `threads`: 0 is as many as there are cores. `optimise`: let it rewrite the graph. `spin`: its threads wait actively for the next operator, which
    burns processor time that no work is done in. Where ONNX Runtime is not installed and nothing is to be optimised, onnx's reference in numpy
    answers; else ImportError is raised.
    """
    try:
        import onnxruntime
    except ImportError:
        if optimise or not isinstance(model, bytes):
            raise
        from onnx import ModelProto
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(ModelProto.FromString(model))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if not spin:
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
