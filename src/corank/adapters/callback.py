"""The controller as a callback of transformers' Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .controller import Controller


def trainer_callback(controller: Controller) -> Any:
    """A TrainerCallback that attaches `controller` to the Trainer's optimiser."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        """Plan the steps and attach when training begins."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            controller.plan(state.max_steps)
            controller.attach(kwargs["optimizer"])

    return Callback()
