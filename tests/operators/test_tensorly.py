"""Operators that are tensors, beside TensorLy's own reconstruction; our Tucker beside its own."""

import pytest
import tensorly
import torch
from tensorly.decomposition import tucker
from tensorly.tt_matrix import tt_matrix_to_matrix
from torch.utils.flop_counter import FlopCounterMode

from corank.control.tucker_flow import hosvd
from corank.operators import Dense, Polyadic, TensorTrain, Tucker, dense_flops


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(tensor):
    return tensor.detach().numpy()


def test_tucker():
    core, factors = rand(2, 3, 2), [rand(n, r, seed=n) for n, r in ((6, 2), (5, 3), (4, 2))]
    theirs = tensorly.tucker_to_tensor((plain(core), [plain(f) for f in factors]))
    op = Tucker(*map(Dense, factors), core=core)
    torch.testing.assert_close(op.dense(), torch.from_numpy(theirs).reshape(6, 20))


def test_polyadic():
    factors = [rand(n, 3, seed=n) for n in (6, 5, 4, 2)]
    theirs = tensorly.cp_to_tensor((None, [plain(f) for f in factors]))
    op = Polyadic(*map(Dense, factors))
    torch.testing.assert_close(op.dense(), torch.from_numpy(theirs).reshape(6, 40))


def test_tensor_train():
    cores = [rand(1, 2, 3, 4), rand(4, 3, 2, 2, seed=1), rand(2, 2, 5, 1, seed=2)]
    op = TensorTrain(*(Dense(c.flatten(2).flatten(0, 1)) for c in cores),
                     rows=(2, 3, 2), columns=(3, 2, 5))  # fmt: skip
    theirs = tt_matrix_to_matrix([plain(c) for c in cores])
    torch.testing.assert_close(op.dense(), torch.from_numpy(theirs))


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("bond", [1, 30])
def test_a_tensor_train_takes_the_cheaper_way(tokens, bond):
    cores = [rand(1, 6, 5, bond), rand(bond, 5, 6, 1, seed=1)]
    op = TensorTrain(*(Dense(c.flatten(2).flatten(0, 1)) for c in cores), rows=(6, 5),
                     columns=(5, 6))  # fmt: skip
    x = rand(tokens, 30, seed=2)
    with FlopCounterMode(display=False) as counter:
        found = op(x)
    torch.testing.assert_close(found, x @ op.dense().T)
    assert counter.get_total_flops() <= op.flops(tokens)
    assert op.flops(tokens) <= 2 * tokens * 900 + dense_flops(op)
    assert op.flops(1) < 2 * 900 + dense_flops(op)


@pytest.mark.parametrize("ranks", [(2, 2, 2), (4, 3, 2), (6, 5, 4)])
def test_higher_order_svd_is_nearly_as_near_as_tensorlys_tucker(ranks):
    a = rand(6, 5, 4)
    core, bases = hosvd(a, ranks)
    ours = float((Tucker(*map(Dense, bases), core=core).dense().view(a.shape) - a).norm())
    theirs = torch.from_numpy(tensorly.tucker_to_tensor(tucker(plain(a), list(ranks))))
    least = float((theirs - a).norm())
    assert least - 1e-9 <= ours <= 3**0.5 * least + 1e-9  # the bound for three modes
