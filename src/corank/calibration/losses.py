from collections.abc import Callable
from typing import Any
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor]
