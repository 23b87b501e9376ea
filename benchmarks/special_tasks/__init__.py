"""Methods of their own kind: for convolutions, experts, a fine-tuned pair, a whole model."""

from benchmarks.special_tasks.delta import Pair
from benchmarks.special_tasks.digits import Convolutions
from benchmarks.special_tasks.experts import Experts
from benchmarks.special_tasks.task import Special
from benchmarks.special_tasks.whole import Routed, Smaller

TASKS: dict[str, type[Special]] = {
    task.name: task for task in (Convolutions, Experts, Pair, Smaller, Routed)
}
