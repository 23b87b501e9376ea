"""The allocation as an integer linear program, by SciPy's HiGHS."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .candidate import Candidate, require_affordable

#: The relative gap to the bound at which the search may stop.
GAP = 1e-4


def integer_program(candidates: list[Candidate], budget: int) -> list[int]:
    """One choice for each unit with the least sum of errors, within `GAP` of the best possible.

    Raises ImportError without SciPy, and RuntimeError where the solver fails.
    """
    require_affordable(candidates, budget)
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError as error:
        raise ImportError("allocate='ilp' needs SciPy: pip install scipy") from error
    sizes = [len(c.menu.costs) for c in candidates]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    errors = np.concatenate([np.array(c.error) for c in candidates])
    costs = np.concatenate([np.array(c.menu.costs, dtype=float) for c in candidates])
    one_each = csr_array((np.ones(starts[-1]), np.arange(starts[-1]), starts))
    scale = errors.max() or 1.0
    found = milp(
        errors / scale,
        integrality=np.ones(len(errors), dtype=int),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs[None] / budget, -np.inf, 1),
        ],
        options={"mip_rel_gap": GAP},
    )
    if found.x is None:
        raise RuntimeError(f"the integer program was not solved: {found.message}")
    return [int(found.x[a:b].argmax()) for a, b in pairwise(starts)]
