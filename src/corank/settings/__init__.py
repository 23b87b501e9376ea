"""What spans whole models: clients, pruned twins, shared blocks, chosen experts, larger ones."""

from .factorized import factorllm
from .federated import fedsa_lora
from .few_shot import kshot_experts
from .influence import block_influence
from .pruning import Pruned, prune_channels
from .recovering import loram
from .requantised import merge_on_grid
from .selecting import weight_selection
from .sharing import flexigpt
from .tasks import set_task

__all__ = [
    "Pruned",
    "block_influence",
    "factorllm",
    "fedsa_lora",
    "flexigpt",
    "kshot_experts",
    "loram",
    "merge_on_grid",
    "prune_channels",
    "set_task",
    "weight_selection",
]
