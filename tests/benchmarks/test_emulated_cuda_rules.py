"""What the emulated CUDA device refuses, as CUDA does."""

import numpy as np
import pytest
import torch

from benchmarks.emulated_cuda import emulated_cuda
from tests.support.cuda_devices import numbers, places

BF16 = torch.bfloat16


OTHER_DEVICE = {
    "a sum": lambda x, y: x + y,
    "a sum in place": lambda x, y: x.add_(y),
    "a sum in place on the CPU": lambda x, y: y.add_(x),
    "a product": lambda x, y: x @ y,
    "a stack": lambda x, y: torch.stack([x, y]),
    "a choice": lambda x, y: torch.where(x > 0, x, y),
    "out": lambda x, y: torch.mm(x, x, out=y),
    "values of a place": lambda x, y: x.index_put_((places(1),), y[:1]),
    "selected rows": lambda x, y: x.index_select(0, torch.tensor([1])),
    "gathered values": lambda x, y: x.gather(0, torch.tensor([[1]])),
    "an embedding": lambda x, y: torch.nn.functional.embedding(torch.tensor([1]), x),
    "a search for a 0-dim tensor": lambda x, y: torch.searchsorted(x[0], torch.tensor(1.0)),
    "a scalar on the device into one that is not": lambda x, y: y[0, 0].add_(x[0, 0]),
}


@pytest.mark.parametrize("name", OTHER_DEVICE)
def test_operands_on_two_devices_are_refused(name, cuda):
    x, y = numbers(3, 3), numbers(3, 3, device="cpu")
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        OTHER_DEVICE[name](x, y)


def test_a_cpu_tensor_takes_no_index_from_the_device(cuda):
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        numbers(3, 3, device="cpu")[places(1)]


def test_scalars_and_indices_may_be_on_the_cpu(cuda):
    x, scalar = numbers(3, 3), torch.tensor(2.0)
    assert torch.equal((x * scalar).cpu(), x.cpu() * 2)
    assert torch.equal((scalar - x).cpu(), 2 - x.cpu())
    assert torch.equal(x.masked_fill(x > 0, scalar).cpu(), x.cpu().masked_fill(x.cpu() > 0, 2))
    assert torch.equal(x[torch.tensor([2, 0])].cpu(), x.cpu()[[2, 0]])
    x[torch.tensor([1])] = scalar
    assert x[1].tolist() == [2, 2, 2]
    x.copy_(torch.ones(3, 3))
    assert x.sum().item() == 9


def test_there_is_one_device(cuda):
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(1, device="cuda:1")


def test_numpy_needs_a_copy_on_the_host(cuda):
    x = numbers(2)
    for convert in (lambda: x.numpy(), lambda: np.asarray(x), lambda: np.sort(x)):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            convert()
    assert x.cpu().numpy().shape == (2,)


MIXED_DTYPES = {
    "mm": lambda x, y: torch.mm(x, y),
    "addmm": lambda x, y: torch.addmm(x, x, y),
    "bmm": lambda x, y: torch.bmm(x[None], y[None]),
    "linear": lambda x, y: torch.nn.functional.linear(x, y),
    "mv": lambda x, y: x @ y[0],
    "index_add_": lambda x, y: x.index_add_(0, places(1), y[:1]),
    "index_copy_": lambda x, y: x.index_copy_(0, places(1), y[:1]),
    "index_put_": lambda x, y: x.index_put_((places(1),), y[:1]),
    "out": lambda x, y: torch.mm(x, x, out=y),
    "a product into another dtype": lambda x, y: torch.mm(y, x, out_dtype=torch.float32),
    "float32 into 16 bits": lambda x, y: torch.mm(x, x, out_dtype=BF16),
    "16 bits into double": lambda x, y: torch.bmm(y[None], y[None], out_dtype=torch.float64),
    "a third dtype added": lambda x, y: torch.addmm(x.half(), y, y, out_dtype=torch.float32),
    "whole numbers": lambda x, y: x.long() @ x.long(),
}


@pytest.mark.parametrize("name", MIXED_DTYPES)
def test_dtypes_that_cuda_does_not_multiply_or_write_are_refused(name):
    with emulated_cuda(deterministic=False):
        x, y = numbers(3, 3), numbers(3, 3, dtype=BF16)
        with pytest.raises(RuntimeError, match=r"dtype|type|implemented"):
            MIXED_DTYPES[name](x, y)


NOT_DETERMINISTIC = {
    "index_add_": lambda x, i: x.clone().index_add_(0, i, x[:2]),
    "index_add": lambda x, i: x.index_add(0, i, x[:2]),
    "index_put_": lambda x, i: x.clone().index_put_((i,), x[:2], accumulate=True),
    "index_put_ (twice)": lambda x, i: x.clone().index_put_((i[[0, 0]],), x[:2]),
    "index_put_ (set twice)": lambda x, i: x.clone().__setitem__((i[[0, 0]], i[[1, 1]]), x[0, :2]),
    "index_copy_": lambda x, i: x.clone().index_copy_(0, i[[0, 0]], x[:2]),
    "scatter_": lambda x, i: x.clone().scatter_(0, i[[0, 0], None], x),
    "scatter_add_": lambda x, i: x.clone().scatter_add_(0, i[:, None], x),
    "scatter_add": lambda x, i: x.scatter_add(0, i[:, None], x),
    "scatter_reduce": lambda x, i: x.scatter_reduce(0, i[:, None], x, "sum"),
    "index_reduce": lambda x, i: x.index_reduce(0, i, x[:2], "mean"),
    "put_": lambda x, i: x.clone().put_(i, x[0, :2], accumulate=True),
    "cumsum": lambda x, i: x.cumsum(0),
    "bincount": lambda x, i: i.bincount(x[0, :2]),
    "kthvalue": lambda x, i: x.kthvalue(1),
    "median": lambda x, i: x.median(0),
    "histc": lambda x, i: x.histc(),
}


@pytest.mark.parametrize("name", NOT_DETERMINISTIC)
def test_operations_that_are_not_deterministic_on_cuda_are_refused_by_name(name, cuda):
    x, i = numbers(3, 3), places(1, 0)
    with pytest.raises(RuntimeError, match=f"^{name.partition(' ')[0]}_? does not have a determin"):
        NOT_DETERMINISTIC[name](x, i)
    cuda.deterministic = False
    NOT_DETERMINISTIC[name](x, i)


def test_their_deterministic_forms_are_not_refused(cuda):
    x, i = numbers(3, 3), places(1, 0)
    x.clone().index_put_((i,), x[:2])
    x.clone().index_put_((i[[0, 0]],), torch.tensor(1.0))
    x.clone().scatter_(0, i[[0, 0], None], 1.0)
    x.clone().scatter_(0, i[:, None], x)
    x.clone().index_copy_(0, i, x[:2])
    x[x > 0] = 0
    i.cumsum(0)
    i.bincount()
    x.median()


def test_what_torch_has_a_deterministic_kernel_for_is_allowed_where_it_is_asked_for(cuda):
    x, i = numbers(3, 3), places(1, 1)
    try:
        torch.use_deterministic_algorithms(True)
        expected = x.cpu().index_add(0, i.cpu(), x[:2].cpu())
        assert torch.equal(x.index_add(0, i, x[:2]).cpu(), expected)
        with pytest.raises(RuntimeError, match=r"^cumsum does not have"):
            x.cumsum(0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_gradients_are_refused_in_words_that_say_so(cuda):
    with pytest.raises(NotImplementedError, match="no gradients on the emulated CUDA device"):
        numbers(3).requires_grad_().sum().backward()
