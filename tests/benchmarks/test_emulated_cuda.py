"""The emulated CUDA device itself: what it computes, counts and leaves behind.

What it refuses is in test_emulated_cuda_rules.py.
"""

import copy
import threading

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.emulated_cuda import DeviceTensor, emulated_cuda
from tests.support.cuda_devices import numbers, places

BF16 = torch.bfloat16


# What it computes.

COMPUTATIONS = {
    "products": lambda x, y: x @ y.T @ torch.einsum("ij,kj->ik", y, x),
    "a vector by a matrix": lambda x, y: x[0] @ y.T,
    "a batch": lambda x, y: torch.baddbmm(x[None], y[None], y[None, :, :].transpose(1, 2) @ x),
    "a linear layer": lambda x, y: torch.nn.functional.linear(x, y, y[:, 0]),
    "softmax": lambda x, y: (x @ y.T).softmax(-1) * y.log_softmax(0),
    "views written to": lambda x, y: x.clone().view(-1)[3:9].view(2, 3).mul_(y[:2, :3]),
    "rows written to": lambda x, y: x.clone().index_copy_(0, places(2, 0).to(x.device), y[:2]),
    "indices": lambda x, y: x[[2, 0]][:, y[0] > 0],
    "sparse": lambda x, y: torch.stack([x.relu().to_sparse(), y.to_sparse()]).coalesce().values(),
    "sorting": lambda x, y: x.flatten().sort(stable=True).values + y.topk(6, -1).values.flatten(),
    "in place with another shape": lambda x, y: x.clone().unsqueeze_(0).transpose_(1, 2) + y.T,
    "out": lambda x, y: torch.mm(x, y.T, out=torch.empty(0, device=x.device)),
    "a layer norm": lambda x, y: torch.nn.functional.layer_norm(x, (6,), y[0], y[1]),
}


@pytest.mark.parametrize("inference", [False, True], ids=["no grad", "inference mode"])
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_float32_results_are_the_cpus_bit_for_bit(name, inference, cuda):
    compute = COMPUTATIONS[name]
    x, y = (numbers(6, 6, seed=seed) for seed in (1, 2))
    with torch.inference_mode(inference):
        ours, expected = compute(x, y), compute(x.cpu(), y.cpu())
    assert ours.device == torch.device("cuda:0")
    assert (ours.shape, ours.stride()) == (expected.shape, expected.stride())
    assert torch.equal(ours.cpu(), expected)


def test_new_tensors_are_where_they_are_asked_for(cuda):
    for make in (torch.zeros, torch.empty, torch.rand, lambda *s, **k: torch.full(s, 1.0, **k)):
        assert make(2, 3, device="cuda").is_cuda
        assert not make(2, 3).is_cuda
    x = torch.tensor([[1.0, 2.0]], device="cuda")
    assert x.is_cuda
    assert x.new_zeros(2).is_cuda
    assert torch.ones_like(x).is_cuda
    assert not torch.ones_like(x, device="cpu").is_cuda
    assert torch.arange(3, device="cuda:0").is_cuda
    assert torch.as_tensor([1, 2], device="cuda").is_cuda
    assert not torch.from_numpy(np.zeros(3)).is_cuda
    assert x.cuda() is x
    assert torch.zeros(2).cuda().is_cuda


def test_a_copy_to_the_device_or_back_shares_no_memory(cuda):
    host = torch.zeros(3)
    there = host.to("cuda")
    back = there.cpu()
    there += 1
    assert host.tolist() == back.tolist() == [0, 0, 0]
    assert there.tolist() == [1, 1, 1]


def test_views_share_memory_and_copies_do_not(cuda):
    x = torch.zeros(2, 3, device="cuda")
    x.T[1].add_(1)
    x.clone().fill_(5)
    x.detach()[0, 0] = 7
    assert x.tolist() == [[7, 1, 0], [0, 1, 0]]


def test_modules_move_with_their_parameters(cuda):
    module = torch.nn.Linear(3, 2)
    x = numbers(4, 3)
    expected = module(x.cpu())
    module.to("cuda")
    assert isinstance(module.weight, torch.nn.Parameter)
    assert module.weight.is_cuda
    assert torch.equal(module(x).cpu(), expected)
    again = copy.deepcopy(module)
    again.weight.data = torch.zeros(3, 2, device="cuda").T
    assert again(x).tolist() == again.bias.expand(4, 2).tolist()
    assert torch.equal(module(x).cpu(), expected)


def test_sampling_draws_the_cpus_numbers_with_a_generator_of_the_device(cuda):
    weights = torch.arange(1.0, 50)
    draws = [
        torch.multinomial(weights.to(d), 20, generator=torch.Generator(d).manual_seed(3)).tolist()
        for d in ("cpu", "cuda")
    ]
    assert draws[0] == draws[1]
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.multinomial(weights.cuda(), 1, generator=torch.Generator())


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_products_of_16_bits_into_float32_sum_in_float32(dtype, cuda):
    a, b = numbers(4, 300, dtype=dtype), numbers(300, 5, seed=1, dtype=dtype)
    c = numbers(4, 5, seed=2)
    product = a.cpu().float() @ b.cpu().float()
    into = {"out_dtype": torch.float32}
    results = {
        "mm": torch.mm(a, b, **into),
        "mm out": torch.mm(a, b, **into, out=torch.empty(4, 5, device="cuda")),
        "bmm": torch.bmm(a[None], b[None], **into)[0],
        "addmm": torch.addmm(c, a, b, **into, beta=0.5, alpha=2),
        "baddbmm": torch.baddbmm(c[None].to(dtype), a[None], b[None], **into)[0],
    }
    added = {"addmm": 0.5 * c.cpu(), "baddbmm": c.cpu().to(dtype).float()}
    for name, result in results.items():
        assert result.dtype == torch.float32
        expected = product * (2 if name == "addmm" else 1) + added.get(name, 0)
        torch.testing.assert_close(result.cpu(), expected, msg=name)
    assert torch.equal(results["mm"].cpu(), product)


def test_a_softmax_of_16_bits_into_float32_is_taken_in_float32(cuda):
    x = numbers(3, 40, dtype=BF16)
    expected = x.cpu().float().softmax(-1)
    assert torch.equal(torch.softmax(x, -1, dtype=torch.float32).cpu(), expected)


def test_safetensors_are_read_onto_the_device(cuda, tmp_path):
    stored = torch.arange(12.0).view(4, 3)
    save_file({"W": stored}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt", device="cuda:0") as file:
        whole, rows = file.get_tensor("W"), file.get_slice("W")[torch.tensor([3, 1])]
    assert whole.is_cuda
    assert rows.is_cuda
    assert torch.equal(whole.cpu(), stored)
    assert torch.equal(rows.cpu(), stored[[3, 1]])


# What it counts.


def test_operations_that_are_no_views_are_kernels(cuda):
    x, host = numbers(4, 6), torch.zeros(3)
    with cuda.counts.during() as counts:
        x.T[2:].unsqueeze(0).expand(3, -1, -1).view(3, 4, 4).detach().unbind(0)
        x.reshape(3, 8)
        host.add(1)
        x.relu_().add(1)
        x @ x.T
        x[:, 0] @ x
        torch._foreach_add([x, x, x], 1)
    assert counts.kernels == {"relu_": 1, "add": 1, "mm": 2, "_foreach_add": 3}
    assert (counts.n_kernels, counts.n_copies, counts.n_synchronisations) == (7, 0, 0)


def test_composite_operations_count_as_what_they_are_made_of_in_inference_mode_too(cuda):
    x = numbers(2, 4, 6)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, cuda.counts.during() as counts:
            torch.nn.functional.linear(x, x[0], x[0, 0, :4]).softmax(-1)
        assert counts.kernels == {"addmm": 1, "_softmax": 1}


WAITS = {
    "item": (lambda x, i: x[0, 0].item(), 1),
    "a condition": (lambda x, i: bool(x[0, 0] > 0), 1),
    "a whole number": (lambda x, i: [0, 1][i[1]], 1),
    "tolist": (lambda x, i: x.tolist(), 1),
    "nonzero": (lambda x, i: x.nonzero(), 1),
    "unique": (lambda x, i: i.unique(), 1),
    "unique_consecutive": (lambda x, i: i.unique_consecutive(return_counts=True), 1),
    "to_sparse": (lambda x, i: x.to_sparse(), 1),
    "a mask": (lambda x, i: x[x > 0], 1),
    "a mask written to": (lambda x, i: x.index_put_((x > 0,), x[x > 0]), 2),
    "a mask filled": (lambda x, i: x.__setitem__(x > 0, 0.0), 0),
    "a mask from the host": (lambda x, i: x[x.cpu() > 0], 1),
    "indices": (lambda x, i: x[i], 0),
    "repeats": (lambda x, i: x[:2].repeat_interleave(i, 0), 1),
    "known repeats": (lambda x, i: x[:2].repeat_interleave(i, 0, output_size=1), 0),
    "as often": (lambda x, i: x.repeat_interleave(2, 0), 0),
    "equal": (lambda x, i: torch.equal(x, x.clone()), 1),
    "allclose": (lambda x, i: torch.allclose(x, x), 1),
    "to the host": (lambda x, i: x.cpu(), 1),
    "into the host": (lambda x, i: torch.zeros(3, 3).copy_(x), 1),
    "a new dtype on the host": (lambda x, i: x.to("cpu", torch.float64), 1),
    "synchronize": (lambda x, i: torch.cuda.synchronize(), 1),
    "masked_select": (lambda x, i: x.masked_select(x > 0), 1),
    "a place by index": (lambda x, i: x[1, 2], 0),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_the_host_waits_for_is_a_synchronisation(name, cuda):
    x, i = numbers(3, 3), places(1, 0)
    call, expected = WAITS[name]
    with cuda.counts.during() as counts:
        call(x, i)
    assert counts.n_synchronisations == expected, counts


def test_copies_count_by_their_direction(cuda):
    x = numbers(3, 3)
    with cuda.counts.during() as counts:
        torch.ones(3, 3).to("cuda")
        torch.tensor([1], device="cuda")
        x.copy_(torch.ones(3, 3))
        x[torch.tensor([1])]
        x.to(BF16).clone()
        x.cpu()
    assert counts.to_device == {"_to_copy": 2, "copy_": 1, "index": 1}
    assert counts.to_host == {"_to_copy": 1}
    assert counts.n_copies == 5


# Its memory.


def test_live_bytes_are_counted_once_a_storage_with_their_peak(cuda):
    x = torch.zeros(1000, device="cuda")
    view = x[10:].view(10, -1)
    assert torch.cuda.memory_allocated() == 4000
    total = x + 1
    del x
    assert torch.cuda.memory_allocated() == 8000
    del view, total
    assert torch.cuda.memory_allocated() == 0
    assert torch.cuda.max_memory_allocated() == 8000
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == 0
    sparse = torch.eye(4, device="cuda").to_sparse()
    assert torch.cuda.memory_allocated() == 4 * 4 + 2 * 4 * 8
    assert sparse.values().sum().item() == 4
    assert torch.cuda.memory_allocated() == 4 * 4 + 2 * 4 * 8


def test_memory_runs_out_at_the_budget_and_is_usable_after():
    with emulated_cuda(memory_bytes=10_000) as cuda:
        x = torch.zeros(1000, device="cuda")
        assert torch.cuda.mem_get_info() == (6000, 10_000)
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate"):
            torch.zeros(2000, device="cuda")
        y = x + 1
        with pytest.raises(torch.OutOfMemoryError):
            y + x
        del y
        assert (x + 1).sum().item() == 1000
        with cuda.memory_limited_to(5000), pytest.raises(torch.OutOfMemoryError):
            x + 1
        x + 1
        assert cuda.memory.refused == 3


def test_single_allocations_can_be_made_to_fail(cuda):
    with cuda.fail_allocations_above(400):
        torch.zeros(100, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(101, device="cuda")
    torch.zeros(101, device="cuda")


# What it leaves behind.


def test_torch_finds_one_device_and_everything_is_as_before_at_the_end():
    def state():
        functions = {name: value for name, value in vars(torch.cuda).items() if callable(value)}
        return (
            functions,
            torch.Generator,
            torch._C._only_lift_cpu_tensors(),
            torch.__future__.get_overwrite_module_params_on_conversion(),
            torch.utils._python_dispatch._get_current_dispatch_mode(),
        )

    before = state()
    with pytest.raises(KeyError), emulated_cuda(memory_bytes=1000):  # noqa: PT012
        assert torch.cuda.is_available()
        assert torch.cuda.is_initialized()
        assert (torch.cuda.device_count(), torch.cuda.current_device()) == (1, 0)
        assert torch.cuda.get_device_properties(0).total_memory == 1000
        assert "emulated" in torch.cuda.get_device_name()
        x = torch.zeros(3, device="cuda")
        raise KeyError
    assert state() == before
    with pytest.raises(RuntimeError, match="this tensor is gone"):
        x + 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_no_device_before_or_after():
    for _ in range(2):
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(1, device="cuda").add_(1)
        with emulated_cuda():
            torch.zeros(1, device="cuda").add_(1)


def test_one_emulation_at_a_time(cuda):
    with pytest.raises(RuntimeError, match="there can be one"), emulated_cuda():
        pass
    assert torch.zeros(1, device="cuda").is_cuda


def in_another_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results


def test_another_thread_makes_tensors_once_it_has_entered_the_mode(cuda):
    x = numbers(3)

    @cuda.in_thread
    def work():
        return (torch.tensor([1.0, 1, 1], device="cuda") + x).sum()

    assert torch.equal(in_another_thread(work)[0], work())
    assert in_another_thread(lambda: type(x + x)) == [DeviceTensor]


def test_a_real_tensor_passes_through_untouched(cuda):
    x = torch.ones(3)
    with cuda.counts.during() as counts:
        assert type(x + 1) is torch.Tensor
        x.numpy()[0] = 5
    assert x.tolist() == [5, 1, 1]
    assert counts.n_kernels == counts.n_synchronisations == 0
