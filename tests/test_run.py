"""torchcls.run: a stream of rests that can be left and taken up anywhere, to the same bits."""

import gc
import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import torchcls as tc

STEPS = 6  # in an epoch: 5 of 16 and one of 8


def data(n=88, seed=0):
    inputs = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :3].argmax(1)


def run_of(train=None, **keywords):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )
    valid = tc.Batches(*data(40, seed=1), batch_size=20)
    keywords = {"epochs": 3, "metrics": [tc.accuracy], "schedule": tc.one_cycle(), **keywords}
    return tc.epochs(
        model,
        tc.Batches(*data(), batch_size=16, shuffle=True) if train is None else train,
        valid,
        loss_fn=nn.CrossEntropyLoss(),
        device="cpu",
        progress=False,
        **keywords,
    )


def outcome(run):
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    return weights, [{**record, "time": None} for record in run.history]


@pytest.fixture(scope="module")
def expected():
    """A run that nobody disturbed."""
    run = run_of()
    list(run)
    return outcome(run)


def assert_same(run, expected):
    weights, records = outcome(run)
    assert records == expected[1]
    for name, value in expected[0].items():
        assert torch.equal(weights[name], value), name


# --- the stream -----------------------------------------------------------------------------------


def test_it_rests_after_every_whole_step_and_after_every_epoch(expected):
    run = run_of()
    rests = list(run.steps())
    inside = [(at.epoch, at.step) for at in rests if at.record is None]
    assert inside == list(itertools.product(range(3), range(1, STEPS + 1)))
    assert [rests.index(at) for at in rests if at.record] == [6, 13, 20]
    assert [at.record for at in rests if at.record] == list(run.history)
    assert all(at.loss.shape == () and not at.loss.requires_grad for at in rests)
    per_epoch = [float(at.loss) for at in rests[:STEPS]]
    sizes = [16] * 5 + [8]
    mean = sum(loss * n for loss, n in zip(per_epoch, sizes, strict=True)) / 88
    assert run.history[0].train_loss == pytest.approx(mean, rel=1e-12)
    assert_same(run, expected)


def in_turn(run):
    for at in run.steps():
        if at.step == 2:
            break
    next(run)
    for at in run.steps():
        if at.step == 4:
            break
    for _ in run:
        break
    for _ in run.steps():
        pass


def broken_out_of_after_every_step(run):
    while run.history[-1:] == [] or len(run.history) < 3:
        for _ in run.steps():
            break


def raised_in_at_every_step(run):
    def one():
        for _ in run.steps():
            raise KeyError

    for _ in range(3 * (STEPS + 1)):
        with pytest.raises(KeyError):
            one()


def one_by_one(run):
    steps = run.steps()
    for _ in steps:
        pass
    assert list(run) == []
    assert next(run.steps(), None) is None


def nested(run):
    for at in run.steps():
        if at.step == 3 and at.epoch == 0:
            for record in run:
                assert record.epoch == 0
                break


@pytest.mark.parametrize(
    "goes",
    [in_turn, broken_out_of_after_every_step, raised_in_at_every_step, one_by_one, nested],
)
def test_however_it_is_gone_through_it_comes_to_the_same_bits(goes, expected):
    run = run_of()
    goes(run)
    assert_same(run, expected)


def test_evaluating_inside_an_epoch_changes_nothing(expected):
    run = run_of()
    valid = tc.Batches(*data(40, seed=2), batch_size=20)
    for at in run.steps():
        if at.step == 3:
            tc.evaluate(run.model, valid, metrics=[tc.accuracy])
            tc.predict(run.model, valid)
    assert_same(run, expected)


def test_who_evaluates_by_hand_may_forget_to_train_again(expected):
    run = run_of()
    for at in run.steps():
        if at.step == 2:
            run.model.eval()
            with torch.no_grad():
                run.model(torch.zeros(2, 4))
    assert_same(run, expected)


def test_a_frozen_layer_stays_frozen_where_somebody_evaluates_by_hand():
    run = run_of()
    norm = run.model[1].eval()
    before = norm.running_mean.clone()
    for at in run.steps():
        if at.step == 2:
            run.model.eval()
    assert torch.equal(norm.running_mean, before)
    assert not norm.training


def test_the_grad_mode_of_who_loops_is_his_own(expected):
    run = run_of()
    with torch.no_grad():
        for _ in run.steps():
            assert not torch.is_grad_enabled()
    assert_same(run, expected)
    for _ in run_of().steps():
        assert torch.is_grad_enabled()
        break


def test_modes_are_those_of_training_inside_an_epoch_and_as_found_between_two():
    run = run_of()
    run.model.eval()
    for at in run.steps():
        assert run.model.training is (at.record is None)
    assert not any(module.training for module in run.model.modules())


def test_a_loop_that_is_left_inside_an_epoch_leaves_modes_and_learning_rate_as_found(expected):
    run = run_of()
    run.model.eval()
    for _ in run.steps():
        assert run.optimizer.param_groups[0]["lr"] != 1e-3  # the schedule's
        break
    assert not any(module.training for module in run.model.modules())
    assert run.optimizer.param_groups[0]["lr"] == 1e-3
    list(run)
    assert_same(run, expected)


def test_an_error_in_validation_trains_no_step_again(expected):
    calls = []

    def once(outputs, targets):
        calls.append(1)
        if len(calls) == 2:  # the first call is the look at the first validation batch
            raise OSError("once")
        return 0.0

    run = run_of(metrics={"accuracy": tc.accuracy, "once": once})
    with pytest.raises(OSError, match="once"):
        list(run)
    assert not run.is_broken
    list(run)
    weights, records = outcome(run)
    for record in records:
        del record["once"]
    assert records == expected[1]
    assert all(torch.equal(weights[name], value) for name, value in expected[0].items())


def test_going_on_after_an_error_in_a_scaled_step_works_without_a_folder():
    model = nn.Linear(4, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    torn = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    run = tc.epochs(
        model,
        [data(16)],
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        precision="float16",
        epochs=2,
        device="cpu",
        progress=False,
    )
    with pytest.raises(ZeroDivisionError):
        next(run)
    torn.remove()
    assert len(list(run)) == 2


def test_no_graph_is_held_at_a_rest():
    held = []

    class Watched(nn.Linear):
        def forward(self, x):
            outputs = super().forward(x)
            held.append(weakref.ref(outputs))
            return outputs

    run = tc.epochs(Watched(4, 3), [data(8)] * 3, loss_fn=nn.CrossEntropyLoss(), progress=False)
    for at in run.steps():
        if at.record is None:
            assert held[-1]() is None
        if at.epoch == 2:
            break


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [(0, 1), (0, 6), (1, 3), (1, 0), (2, 6)])
def test_another_run_goes_on_from_its_state(stop, expected):
    first = run_of(epochs=3)
    for at in first.steps():
        if (at.epoch, at.step) == stop or (stop[1] == 0 and at.record and at.epoch == stop[0] - 1):
            break
    state, random = first.state_dict(), torch.get_rng_state()
    second = run_of(epochs=3)
    second.load_state_dict(state)
    assert second.position == first.position
    assert second.position == (*stop, False)
    torch.set_rng_state(random)
    list(second)
    assert_same(second, expected)


def test_going_back_to_an_earlier_state_repeats_the_same_bits(expected):
    batches = list(tc.Batches(*data(), batch_size=16))
    run = run_of(batches)
    next(run)
    for at in run.steps():
        if at.step == 2:
            break
    state, random = run.state_dict(), torch.get_rng_state()
    state = torch.utils._pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state
    )
    list(run)
    once = outcome(run)
    run.load_state_dict(state)
    assert run.position == (1, 2, False)
    torch.set_rng_state(random)
    list(run)
    assert_same(run, once)


def test_an_error_inside_a_step_begins_the_epoch_again_where_nothing_was_kept():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(1)
        if len(calls) == 9:
            raise OSError("once")
        return nn.functional.cross_entropy(outputs, targets)

    model = nn.Linear(4, 3)
    run = tc.epochs(
        model, list(tc.Batches(*data(), batch_size=16)), loss_fn=loss_fn, epochs=2, progress=False
    )
    with pytest.raises(OSError, match="once"):
        list(run)
    assert run.is_broken
    assert len(run.history) == 1
    steps = [(at.epoch, at.step) for at in run.steps() if at.record is None]
    assert steps == [(1, step) for step in range(1, STEPS + 1)]
    assert len(run.history) == 2


def test_training_by_ones_own_loop_leaves_the_epoch_of_a_sampler_alone():
    dataset = TensorDataset(*data())
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0)
    sampler.set_epoch(7)
    model = nn.Linear(4, 3)
    loader = DataLoader(dataset, 16, sampler=sampler)
    tc.train_one_epoch(model, loader, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1))
    assert sampler.epoch == 7


# --- clipping -------------------------------------------------------------------------------------


def clipped(clip_norm, **keywords):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = SGD(model.parameters(), lr=0.5)
    norms = []

    def look(*_):
        gradients = [p.grad for p in model.parameters()]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))))

    optimizer.register_step_pre_hook(look)
    weight = torch.tensor([1.0, 2.0, 9.0])
    tc.fit(
        model,
        list(tc.Batches(*data(), batch_size=32)),
        loss_fn=nn.CrossEntropyLoss(weight),
        optimizer=optimizer,
        epochs=2,
        clip_norm=clip_norm,
        device="cpu",
        progress=False,
        **keywords,
    )
    return model, norms


def by_hand(clip_norm):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = SGD(model.parameters(), lr=0.5)
    loss_fn = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 9.0]))
    for _ in range(2):
        for inputs, targets in tc.Batches(*data(), batch_size=32):
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
    return model


def test_clipping_takes_the_step_of_a_loop_that_clips():
    model, norms = clipped(0.1)
    expected = by_hand(0.1)
    assert torch.equal(model.weight, expected.weight)
    assert max(norms) <= 0.1 * (1 + 1e-5)
    _, free = clipped(None)
    assert max(free) > 0.5  # so there was something to clip


@pytest.mark.parametrize("size", [1, 5, 32])
def test_clipping_is_that_of_the_whole_batch_whatever_the_pieces(size):
    model, _ = clipped(0.1, micro_batch=size)
    torch.testing.assert_close(model.weight, by_hand(0.1).weight)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_under_a_loss_scale_hooks_and_clipping_see_the_true_gradients(fused, clip_norm):
    def norms_of(precision):
        torch.manual_seed(0)
        model, norms = nn.Linear(4, 3), []
        optimizer = SGD(model.parameters(), lr=0.1, fused=fused)
        optimizer.register_step_pre_hook(
            lambda *_: norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
        )
        tc.fit(
            model,
            [data(16), data(16, seed=1)],
            loss_fn=nn.CrossEntropyLoss(),
            optimizer=optimizer,
            precision=precision,
            clip_norm=clip_norm,
            epochs=2,
            device="cpu",
            progress=False,
        )
        return torch.stack(norms)

    # Three decimal digits of float16.
    torch.testing.assert_close(norms_of("float16"), norms_of("float32"), rtol=5e-3, atol=0)


@pytest.mark.parametrize("clip_norm", [0, -1.0, float("inf"), float("nan"), True, "1"])
def test_a_norm_that_clips_nothing_or_everything_is_refused(clip_norm):
    with pytest.raises(ValueError, match="clip_norm must be a number above 0 or None, got"):
        run_of(clip_norm=clip_norm)


# --- memory ---------------------------------------------------------------------------------------


def test_fifty_runs_leave_no_tensor_behind():
    def one():
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        images, targets = torch.rand(48, 1, 8, 8), torch.arange(48) % 3
        batches = tc.Batches(images, targets, batch_size=48)
        tc.fit(model, batches, loss_fn=nn.CrossEntropyLoss(), epochs=1, progress=False)
        tc.evaluate(model, batches, metrics=[tc.accuracy])

    def tensors():
        gc.collect()
        return sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects())

    one()
    before = tensors()
    for _ in range(50):
        one()
    assert tensors() <= before
