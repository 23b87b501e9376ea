"""What changes while training: scores, schedules, penalties, masks, restarts."""

from .control import Control, Training

__all__ = ["Control", "Training"]
