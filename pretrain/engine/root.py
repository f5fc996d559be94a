"""The door between DeepSpeed and an objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_pipelines.batch import Batch
from pretrain.objective import Objective, Output


class Root:
    """The objective's own forward, seen by DeepSpeed as a function from a batch to one tensor.

    ZeRO hooks into the tensors that modules return, and does not look into dataclasses. So the
    objective hands DeepSpeed its loss alone, and the rest waits here. Probes and pictures run
    through the same door, as ZeRO 3 gathers parameters only inside the outermost forward.
    """

    def __init__(self, objective: Objective, device: torch.device, precision: str) -> None:
        self._objective = objective
        self._task: Any = None
        self._result: Any = None
        self._forward = objective.forward
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        object.__setattr__(objective, "forward", self._dispatch)
        objective.register_forward_hook(self._keep, prepend=True)

    def run(self, task: Any, batch: Batch) -> None:
        """Call `task`, or the objective's own forward when it is None."""
        self._task = task
        try:
            self._objective(batch)
        finally:
            self._task = None

    def take(self) -> Any:
        """What the last call gave; kept no longer."""
        result, self._result = self._result, None
        return result

    def _dispatch(self, batch: Batch) -> Any:
        # DeepSpeed switches an autocast from outside off; inside of forward it is ours.
        with self._autocast:
            return (self._task or self._forward)(batch)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self._result = output
        return output.loss if isinstance(output, Output) else ()
