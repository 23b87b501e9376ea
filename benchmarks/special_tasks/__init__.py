"""Models that need methods of their own kind: convolutions, experts, a fine-tuned pair."""

from benchmarks.special_tasks.delta import Pair
from benchmarks.special_tasks.digits import Convolutions
from benchmarks.special_tasks.experts import Experts
from benchmarks.special_tasks.task import Special

TASKS: dict[str, type[Special]] = {task.name: task for task in (Convolutions, Experts, Pair)}
