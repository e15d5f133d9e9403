"""Which few partitions a plan keeps: each costs CUDA graphs and memory."""

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds as Box
from scipy.optimize import LinearConstraint, milp

from nexus.core.arrays import Floats, Ints
from nexus.core.errors import NexusError

_OPTIMAL = 0
_TIME_LIMIT_S = 3.0


def best_partitions(gain: Floats, weight: Floats, at_most: int) -> Ints:
    """The partitions to keep, at most ``at_most``, that together lose least; sorted indices.

    ``gain`` (partitions, states) is what each adds in each state over the best mode that needs
    no partition (0 or more), ``weight`` (states,) how much the state counts. A
    mixed-integer program: one binary variable says whether a partition is kept, one share
    a state and partition says that it is used there. Raises NexusError when HiGHS fails.
    """
    partitions, states = gain.shape
    useful = np.argwhere(gain * weight > 0)
    if at_most == 0 or len(useful) == 0:
        return np.zeros(0, dtype=np.int64)
    uses = len(useful)
    rows, ones = np.arange(uses), np.ones(uses)
    keep, where = useful[:, 0], useful[:, 1]
    kept = sparse.csr_matrix((-ones, (rows, keep)), shape=(uses, partitions))
    only_kept = sparse.hstack([kept, sparse.identity(uses)])
    used = sparse.csr_matrix((ones, (where, rows)), shape=(states, uses))
    once = sparse.hstack([sparse.csr_matrix((states, partitions)), used])
    few = sparse.csr_matrix(np.concatenate([np.ones(partitions), np.zeros(uses)])[None, :])
    value = gain[keep, where] * weight[where]
    found = milp(
        np.concatenate([np.full(partitions, 1e-9 * value.sum()), -value]),
        integrality=np.concatenate([np.ones(partitions), np.zeros(uses)]),
        bounds=Box(0.0, 1.0),
        constraints=[
            LinearConstraint(only_kept, ub=0.0),
            LinearConstraint(once, ub=1.0),
            LinearConstraint(few, ub=at_most),
        ],
        options={"time_limit": _TIME_LIMIT_S},
    )
    if found.status != _OPTIMAL or found.x is None:
        raise NexusError(f"the choice of partitions ended with: {found.message}")
    return np.nonzero(found.x[:partitions] > 0.5)[0].astype(np.int64)
