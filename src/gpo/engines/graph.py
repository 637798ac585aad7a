"""A computation on a GPU recorded once and launched as a whole, where Python would launch a thousand kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Graph:
    """`compute(inputs)`, whose shapes and memory stay, and which reads no number back.

    What it returns is overwritten by the next call. `before` is a graph that is not called any more: its memory is used
    again.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], inputs: Tensor, before: Graph | None) -> None:
        self.inputs = inputs.clone()
        self.pool: Any = torch.cuda.graph_pool_handle() if before is None else before.pool
        self.graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph would collect garbage and give cached memory back, each time. The stream is another one each
        # time: graphs of one stream share the workspace of cuBLAS, which the first that goes takes with it.
        stream: Any = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(inputs.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.graph.capture_begin(self.pool, "thread_local")
            try:
                self.outputs = compute(self.inputs)
            finally:
                self.graph.capture_end()
        current.wait_stream(stream)

    def __call__(self, inputs: Tensor) -> Tensor:
        self.inputs.copy_(inputs)
        self.graph.replay()
        return self.outputs
