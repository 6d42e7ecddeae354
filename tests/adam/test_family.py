"""The optimizer against the recursion, and what a drop-in must do."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.adam.method.adabound import AdaBound
from stages.adam.method.adam_family import AdamFamily
from stages.adam.method.recursion import MEMBERS, Recursion, theory_bounds
from stages.adam.method.schedules import Constant, Debias, Increasing, Schedule, Stagewise

BOUNDS = (0.2, 5.0)
SHAPES = ((3, 4), (5,), ())


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def give_grads(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize("init", ["grad", "zeros"])
@pytest.mark.parametrize("member", MEMBERS)
def test_optimizer_follows_the_recursion_over_many_tensors(member: str, init: str) -> None:
    params = parameters()
    optimizer = AdamFamily(
        params, lr=lambda t: 0.1 / (t + 1), beta1=Increasing(0.8), member=member, beta2=0.9, G0=0.01, bounds=BOUNDS,
        init_first_moment=init,  # type: ignore[arg-type]
    )  # fmt: skip
    x = flat(list(params))
    recursion = Recursion(member, 0.9, 0.01, BOUNDS, init)  # type: ignore[arg-type]
    scales = []
    for t in range(12):
        give_grads(params, t)
        x = recursion.step(
            x, flat([p.grad for p in params if p.grad is not None]), 0.1 / (t + 1), Increasing(0.8)(t)
        )
        optimizer.step()
        scales.append(recursion.s.expand_as(x))
    torch.testing.assert_close(flat(list(params)), x, rtol=0, atol=1e-12)
    first_moments = [v for p in params if (v := optimizer.first_moment(p)) is not None]
    torch.testing.assert_close(flat(first_moments), recursion.v, rtol=0, atol=1e-12)
    low, high = optimizer.scale_range()
    assert low == pytest.approx(float(torch.stack(scales).min()))
    assert high == pytest.approx(float(torch.stack(scales).max()))


def test_adabound_with_bounds_that_coincide_is_heavy_ball() -> None:
    results = []
    for options in ({"member": "adabound", "bounds": (1.0, 1.0)}, {"member": "sgdm"}):
        params = parameters()
        optimizer = AdamFamily(params, lr=0.1, **options)
        for t in range(5):
            give_grads(params, t)
            optimizer.step()
        results.append(flat(list(params)))
    torch.testing.assert_close(*results, rtol=0, atol=1e-15)


@given(
    grads=st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=12),
    member=st.sampled_from([name for name in MEMBERS if name != "adagrad"]),
    beta=st.floats(0, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_scale_stays_within_the_theory(grads: list[list[float]], member: str, beta: float) -> None:
    """Assumption A2: c_l <= s <= c_u whenever gradients are bounded (for adam_plus: their norm is)."""
    G = 6.0 if member == "adam_plus" else 3.0  # four entries of at most 3
    c_l, c_u = theory_bounds(member, G, 0.1, BOUNDS)
    recursion, x = Recursion(member, 0.9, 0.1, BOUNDS), torch.zeros(4, dtype=torch.float64)
    for g in grads:
        x = recursion.step(x, torch.tensor(g, dtype=torch.float64), 0.1, beta)
        assert c_l * (1 - 1e-12) <= float(recursion.s.min())
        assert float(recursion.s.max()) <= c_u * (1 + 1e-12)


@given(b=st.floats(0.01, 0.999), T=st.integers(1, 60))
@settings(deadline=None)
def test_debias_weights_are_those_of_bias_correction(b: float, T: int) -> None:
    value, raw = 0.0, 0.0
    generator = torch.Generator().manual_seed(T)
    for t, g in enumerate(torch.randn(T, generator=generator).tolist()):
        value = Debias(b)(t) * value + (1 - Debias(b)(t)) * g
        raw = b * raw + (1 - b) * g
    assert value == pytest.approx(raw / (1 - b**T), rel=1e-6, abs=1e-9)


@given(t=st.integers(0, 10_000), c=st.floats(0.01, 50), power=st.floats(0.1, 1))
def test_schedules_stay_below_one_and_increase(t: int, c: float, power: float) -> None:
    schedule = Increasing(c, power)
    assert 0 <= schedule(t) <= schedule(t + 1) < 1


def test_stagewise() -> None:
    schedule = Stagewise(((0, 0.5), (3, 0.9), (6, 0.99)))
    assert [schedule(t) for t in (0, 2, 3, 5, 6, 99)] == [0.5, 0.5, 0.9, 0.9, 0.99, 0.99]


@pytest.mark.parametrize("member", MEMBERS)
def test_state_dict_resumes_to_the_same_bits(member: str) -> None:
    def build(params: list[nn.Parameter]) -> AdamFamily:
        return AdamFamily(params, lr=0.1, beta1=Increasing(), member=member, bounds=BOUNDS)

    whole, half = parameters(), parameters()
    first, second = build(whole), build(half)
    for t in range(6):
        if t == 3:
            buffer = io.BytesIO()
            torch.save(second.state_dict(), buffer)
            buffer.seek(0)
            second = build(half)
            second.load_state_dict(torch.load(buffer, weights_only=True))
        give_grads(whole, t)
        give_grads(half, t)
        first.step()
        second.step()
    assert torch.equal(flat(list(whole)), flat(list(half)))
    assert first.scale_range() == second.scale_range()


def test_deepcopy_keeps_the_schedules() -> None:
    params = parameters()
    optimizer = AdamFamily(params, lr=0.1, beta1=Increasing())
    clone = copy.deepcopy(optimizer)
    clone_params = clone.param_groups[0]["params"]
    for t in range(4):
        give_grads(params, t)
        give_grads(clone_params, t)
        optimizer.step()
        clone.step()
    assert clone.param_groups[0]["beta1"] == Increasing()(3)
    assert torch.equal(flat(list(params)), flat(clone_params))


def test_closure_runs_with_gradients_and_its_loss_comes_back() -> None:
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = AdamFamily([p], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert p.item() < 2.0


def test_groups_have_their_own_options_and_absent_gradients_stay_behind() -> None:
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = AdamFamily(
        [{"params": [a, b], "member": "sgdm"}, {"params": [c], "lr": 0.0}], lr=0.1, beta1=0.0
    )
    a.grad, c.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    assert torch.equal(a.detach(), torch.full((2,), 0.9))
    assert torch.equal(b.detach(), torch.ones(2))
    assert torch.equal(c.detach(), torch.ones(2))
    late = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late], "member": "sgdm"})
    late.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(late.detach(), torch.full((2,), 0.9))


def test_learning_rate_schedulers_work() -> None:
    params = parameters()
    optimizer = AdamFamily(params, lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    give_grads(params, 0)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_gradient_scaler_skips_overflow_and_unscales() -> None:
    plain, scaled = parameters(torch.float32), parameters(torch.float32)
    reference, optimizer = AdamFamily(plain, lr=0.1), AdamFamily(scaled, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = flat(list(scaled)).clone()
    for t, factor in ((0, math.inf), (1, 1.0)):
        optimizer.zero_grad()
        give_grads(plain, t)
        targets = [p.grad for p in plain if p.grad is not None]
        loss = torch.stack([(p * g).sum() for p, g in zip(scaled, targets, strict=True)]).sum()
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        if t == 0:
            assert torch.equal(flat(list(scaled)), before)
    reference.step()
    torch.testing.assert_close(flat(list(scaled)), flat(list(plain)))


def test_what_is_not_supported_is_refused() -> None:
    with pytest.raises(ValueError, match="complex"):
        AdamFamily([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    optimizer = AdamFamily(table.parameters())
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    for options, text in (
        ({"member": "adamax"}, "unknown member"),
        ({"lr": -1.0}, "lr"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta2": Constant(1.5)}, "beta2"),
        ({"G0": -1.0}, "G0"),
        ({"init_first_moment": "ones"}, "init_first_moment"),
        ({"member": "adabound"}, "bounds"),
        ({"member": "adagrad", "bias_correction": True}, "bias_correction"),
    ):
        with pytest.raises(ValueError, match=text):
            AdamFamily(parameters(), **options)
    with pytest.raises(RuntimeError, match="scale_range"):
        AdamFamily(parameters()).scale_range()


def test_custom_schedule_and_added_group_of_adabound() -> None:
    """A group that is added later takes part (in the released class it is silently skipped)."""
    schedule: Schedule = lambda t: 0.9  # noqa: E731
    assert AdamFamily(parameters(), beta1=schedule).param_groups[0]["beta1"] == 0.9
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdaBound([a], lr=0.1)
    optimizer.add_param_group({"params": [b], "lr": 0.01})
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    assert b[0].item() < 1
    assert optimizer.param_groups[1]["base_lr"] == 0.01
