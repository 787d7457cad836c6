"""The preflight of a run: when it looks, what it keeps, and which batch it names."""

import copy
import functools
import inspect
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchcls as tc
from torchcls.averaging import Mean
from torchcls.preflight import failure, scores
from torchcls.preflight.failure import is_finite
from torchcls.preflight.run import Preflight
from torchcls.step import Taken

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12) % 3


def linear(k=3):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, k))


def batches(x=X, y=IDS, size=4):
    return list(zip(x.split(size), y.split(size), strict=True))


def run_of(model, train, valid=None, loss_fn=None, **keywords):
    keywords = {"epochs": 3, "progress": False, "device": "cpu", **keywords}
    return tc.epochs(model, train, valid, loss_fn=loss_fn or nn.CrossEntropyLoss(), **keywords)


def by_hand(model, steps, loss_fn=F.cross_entropy):
    """The weights after some steps of the plain loop, with the optimizer that a run builds."""
    optimizer = tc.default_optimizer(model)
    for inputs, targets in steps:
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    return model.state_dict()


def assert_same(model, weights):
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


class Later:
    """The batches, but for one number that is spoilt at some batch of some epoch."""

    def __init__(self, epoch, batch, value=float("nan")):
        self.passes, self.at, self.value = -1, (epoch, batch), value

    def __len__(self):
        return 3

    def __iter__(self):
        self.passes += 1
        for i, (inputs, targets) in enumerate(batches()):
            if (self.passes, i) == self.at:
                inputs = inputs.clone()
                inputs[2, 1] = self.value
            yield inputs, targets


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 2), (1, 1)])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_first_loss_that_is_not_finite_is_named_and_the_last_good_weights_stay(
    epoch, batch, micro_batch
):
    model = linear()
    run = run_of(model, Later(epoch, batch), micro_batch=micro_batch)
    with pytest.raises(tc.ContractError) as stopped:
        list(run)
    message = str(stopped.value)
    assert f"batch {batch} of epoch {epoch} (both counted from 0)" in message
    assert "The inputs hold NaN (1 value, first in sample 2)" in message
    assert [record.epoch for record in run.history] == list(range(epoch))
    if micro_batch is None:  # pieces round
        assert_same(model, by_hand(linear(), (batches() * 2)[: 3 * epoch + batch]))


def test_infinite_inputs_are_named_too():
    with pytest.raises(tc.ContractError, match="The inputs hold infinity"):
        list(run_of(linear(), Later(0, 1, float("inf"))))


def test_targets_are_named():
    targets = torch.zeros(12, 1)
    targets[5] = float("nan")
    with pytest.raises(tc.ContractError, match=r"The targets hold NaN .*first in sample 1"):
        list(run_of(linear(1), batches(y=targets), loss_fn=nn.MSELoss()))


def test_weights_that_were_ruined_before_are_named():
    model = linear()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(tc.ContractError, match=r"model's 0\.weight is not"):
        list(run_of(model, batches()))


def test_a_loss_that_overflows_by_itself_is_named():
    def loss_fn(outputs, targets):
        return F.cross_entropy(outputs, targets) / (outputs.sum() * 0)

    with pytest.raises(tc.ContractError, match="outputs are finite: the loss itself"):
        list(run_of(linear(), batches(), loss_fn=loss_fn))


def test_outputs_that_are_not_finite_are_named_and_an_exponential_only_where_one_was_taken():
    class Divides(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 0

    with pytest.raises(tc.ContractError, match="The outputs hold") as stopped:
        list(run_of(Divides(4, 3), batches()))
    assert "exponential" not in str(stopped.value)


def test_a_gradient_that_is_not_finite_stops_the_run_though_its_loss_is():
    def loss_fn(outputs, targets):
        return outputs.sub(outputs).pow(2).sum().sqrt() + F.cross_entropy(outputs, targets)

    model = linear()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(tc.ContractError) as stopped:
        list(run_of(model, batches(), loss_fn=loss_fn))
    assert [finding.code for finding in stopped.value.findings] == ["non-finite-gradient"]
    assert "the gradient of 0.weight is not (2 parameters in all)" in str(stopped.value)
    assert_same(model, before)


def test_gradients_that_overflow_their_sum_alone_are_finite():
    assert is_finite([torch.full((3,), 3e38), None])
    assert not is_finite([torch.zeros(2), torch.tensor([1.0, float("nan")])])
    sparse = torch.sparse_coo_tensor([[1]], [float("inf")], (3,), check_invariants=True)
    assert not is_finite([sparse])


def test_a_gradient_whose_sum_alone_overflows_is_no_finding():
    class Offsets(nn.Module):
        def __init__(self):
            super().__init__()
            self.offsets = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.offsets.expand(len(x), 3)

    model = Offsets()
    run = run_of(
        model,
        batches()[:1],
        loss_fn=lambda outputs, targets: (outputs[0] * 3e38).sum(),
        optimizer=torch.optim.SGD(model.parameters(), 2e-38),
        epochs=1,
    )
    list(run)
    assert run.history.findings == []
    assert model.offsets.tolist() == pytest.approx([-6, -6, -6])


def test_validation_that_stays_not_finite_is_said_once():
    spoilt = X.clone()
    spoilt[::4, 0] = float("inf")
    run = run_of(linear(), batches(), batches(spoilt), check="warn")
    with pytest.warns(UserWarning, match="non-finite-valid-loss") as said:
        assert len(list(run)) == 3
    assert len(said) == 1
    assert "validation batch 0 of epoch 0" in str(said[0].message)


def test_validation_that_is_not_finite_stops_after_the_epoch_and_names_the_batch():
    spoilt = X.clone()
    spoilt[6, 0] = float("nan")
    model = linear()
    run = run_of(model, batches(), batches(spoilt)[:2], metrics=[tc.accuracy])
    with pytest.raises(tc.ContractError, match=r"validation batch 1 of epoch 0 .*sample 2") as stop:
        list(run)
    assert stop.value.findings[0].code == "non-finite-valid-loss"
    assert_same(model, by_hand(linear(), batches()))


def test_an_epoch_in_which_nothing_counts_stops_the_run():
    targets = torch.full((12,), -100)
    with pytest.raises(tc.ContractError, match="No target of epoch 0") as stopped:
        list(run_of(linear(), batches(y=targets)))
    assert stopped.value.findings[0].code == "all-ignored"


def preflight_of(model, optimizer, **keywords):
    keywords = {"check": "error", "ignore": (), "scales_loss": False, **keywords}
    return Preflight(
        model,
        nn.CrossEntropyLoss(),
        (),
        optimizer,
        batches(size=1),
        None,
        has_schedule=False,
        **keywords,
    )


def taken_on(model, inputs, targets, loss):
    """A step whose loss lies where nobody may wait for it."""
    outputs = model(inputs)
    F.cross_entropy(outputs, targets).backward()
    loss = torch.tensor(loss)
    n = len(targets)
    return Taken(loss, loss, loss * n, n, inputs, targets, outputs, (inputs, targets))


def test_on_an_accelerator_a_fused_optimizer_is_held_back_unseen():
    """The same mechanism on the CPU, where it can be looked at."""
    model = linear()
    optimizer = tc.default_optimizer(model)
    weights = []
    preflight = preflight_of(model, optimizer)
    for number, loss in enumerate((1.0, 2.0, float("nan"), 1.0)):
        optimizer.zero_grad()
        taken = taken_on(model, X, IDS, loss)
        optimizer.found_inf = preflight(taken, 0, number)
        optimizer.step()
        weights.append(model[0].weight.detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[1], weights[3])


def test_where_a_run_goes_on_inside_an_epoch_the_batches_keep_their_numbers():
    model, mean = linear(), Mean()
    preflight = preflight_of(model, torch.optim.SGD(model.parameters(), 0.1))
    for number, loss in ((5, 1.0), (6, float("inf")), (7, 1.0)):
        preflight(taken_on(model, X, IDS, loss), 2, number)
        mean.add(1.0, 4)
    with pytest.raises(tc.ContractError, match="not finite in batch 6 of epoch 2"):
        preflight.after_epoch(2, mean)
    for number in (5, 6):  # the run went back
        preflight(taken_on(model, X, IDS, 1.0), 2, number)
    preflight.after_epoch(2, mean)
    assert preflight.findings == []


@pytest.mark.parametrize(
    "keywords",
    [{"check": "warn"}, {"scales_loss": True}, {"ignore": ["non-finite-loss"]}, {"fused": False}],
)
def test_an_optimizer_is_held_back_only_where_that_is_asked_for_and_can_be(keywords):
    model = linear()
    fused = keywords.pop("fused", True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
    preflight = preflight_of(model, optimizer, **keywords)
    assert preflight(taken_on(model, X, IDS, float("nan")), 0, 0) is None


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (tc.default_optimizer, "The weights are those after the last good step."),
        (functools.partial(torch.optim.SGD, lr=0.1), "The optimizer has gone on stepping."),
    ],
)
def test_a_loss_that_lies_on_an_accelerator_is_looked_at_when_the_epoch_ends(optimizer, words):
    """The same mechanism on the CPU: a loss as a tensor is one that nobody may wait for."""
    model = linear()
    made = optimizer(model.parameters() if words.startswith("The o") else model)
    preflight, mean = preflight_of(model, made), Mean()
    for number, (inputs, targets) in enumerate(batches()):
        taken = taken_on(model, inputs, targets, float("nan") if number == 1 else 1.0)
        preflight(taken, 0, number)
        mean.add(taken.mean, 4)
    with pytest.raises(tc.ContractError, match="not finite in batch 1 of epoch 0") as stopped:
        preflight.after_epoch(0, mean)
    assert [finding.code for finding in stopped.value.findings] == ["non-finite-loss"]
    assert words in str(stopped.value)


# --- when it looks ------------------------------------------------------------------------------


def test_a_later_batch_that_fails_is_explained():
    train = batches()
    train[1] = (train[1][0], train[1][1] + 7)
    with pytest.raises(tc.ContractError, match="run from 7 to 9, but 3 outputs") as stopped:
        list(run_of(linear(), train))
    assert isinstance(stopped.value.__cause__, IndexError)


def test_targets_out_of_range_in_memory_are_seen_at_the_first_step():
    targets = IDS.clone()
    targets[-1] = 3
    model = linear()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(tc.ContractError, match="0 to 3"):
        list(run_of(model, tc.Batches(X, targets, batch_size=4)))
    assert_same(model, before)


def test_yes_and_no_out_of_range_are_seen_as_they_pass_by():
    targets = (IDS[:, None] > 0).float()
    targets[9], targets[8] = 2, 0
    with pytest.raises(tc.ContractError, match=r"must lie in \[0, 1\], got 0 to 2"):
        list(run_of(linear(1), batches(y=targets), loss_fn=nn.BCEWithLogitsLoss()))


def test_a_batch_of_validation_that_fails_is_explained():
    with pytest.raises(tc.ContractError, match="run from 5 to 7"):
        list(run_of(linear(), batches(), [(X[:3], IDS[:3] + 5)]))


def test_what_cannot_be_looked_at_again_is_raised_as_it_is():
    class Two(tuple):
        def __new__(cls, first, second):
            return super().__new__(cls, (first, second))

    class Fails(nn.Linear):
        def forward(self, both):
            raise ZeroDivisionError("my own fault")

    with pytest.raises(ZeroDivisionError, match="my own fault"):
        list(run_of(Fails(4, 3), [(Two(X, X), IDS)]))


def test_a_compiled_model_that_takes_no_part_of_a_batch_is_read_as_it_ran():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.last = nn.Linear(4, 3), nn.Softmax(1)

        def forward(self, x):
            return self.last(self.head(x.view(12, 4)))

    compiled = torch.compile(Fixed(), backend="eager")
    with pytest.raises(tc.ContractError, match="activated-twice"):
        list(run_of(compiled, [(X, IDS)]))


def test_what_the_loader_raises_is_raised_as_it_is():
    def broken():
        yield batches()[0]
        raise RuntimeError("the disk is gone")

    class Source:
        def __iter__(self):
            return broken()

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(run_of(linear(), Source()))


def test_sorted_targets_are_noted_as_they_pass_by():
    order = IDS.argsort(stable=True)
    run = run_of(linear(), batches(X[order], IDS[order]))
    assert [finding.code for finding in next(run) and run.history.findings] == ["sorted-targets"]
    shuffled = run_of(linear(), batches())
    next(shuffled)
    assert shuffled.history.findings == []


def test_validation_of_another_scale_is_warned_of_once():
    run = run_of(linear(), batches(), batches(X * 255, size=6))
    with pytest.warns(UserWarning, match="scale both alike") as said:
        list(run)
    assert len(said) == 1
    in_memory = [tc.Batches(x, IDS, batch_size=4, shuffle=True) for x in (X, X * 255)]
    with pytest.warns(UserWarning, match="scale-differs"):
        next(run_of(linear(), *in_memory))


def test_metrics_are_not_tried_where_validation_has_another_shape():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    train, valid = (
        tc.Batches(torch.rand(12, 1, side, side), IDS, batch_size=4, shuffle=True)
        for side in (8, 10)
    )
    history = list(run := run_of(model, train, valid, metrics=[tc.accuracy], epochs=1))
    assert [finding.code for finding in run.history.findings] == ["shape-differs"]
    assert 0 <= history[0].accuracy <= 1


def test_a_warning_points_at_the_line_of_the_user():
    train = batches()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_of(linear(), train, train)
    assert said[0].filename == inspect.getfile(run_of)


def test_a_batch_without_a_sample_is_not_the_first_step():
    empty = (X[:0], IDS[:0])
    model = nn.Sequential(*linear(), nn.Softmax(1))
    with pytest.raises(tc.ContractError, match="activated-twice"):
        list(run_of(model, [empty, *batches()]))


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"check": "loud"}, ValueError, "check must be 'error', 'warn' or 'off', got 'loud'"),
        ({"ignore": "last-batch"}, TypeError, "Write ['last-batch']"),
        ({"ignore": ["last-bath"]}, ValueError, "got 'last-bath'. There are: activated-twice"),
    ],
)
def test_what_it_is_told_must_make_sense(keywords, error, words):
    with pytest.raises(error) as refused:
        run_of(linear(), batches(), **keywords)
    assert words in str(refused.value)


def test_findings_are_those_of_every_part_of_a_history():
    model = nn.Sequential(*linear(), nn.LogSoftmax(1))
    history = tc.fit(model, batches(), loss_fn=nn.CrossEntropyLoss(), epochs=2, progress=False)
    assert [finding.code for finding in history[:1].findings] == ["redundant-log-softmax"]


# --- what it says once, and what it leaves alone ------------------------------------------------


def test_a_run_that_is_nan_says_so_once_and_its_weights_are_looked_through_once(monkeypatch):
    looked = []
    real = failure.what_went_first
    monkeypatch.setattr(failure, "what_went_first", lambda *a: looked.append(a) or real(*a))
    run = run_of(linear(), Later(0, 1), check="warn")
    with pytest.warns(UserWarning, match="non-finite-loss") as said:
        assert len(list(run)) == 3
    assert ["[non-finite-loss]" in str(w.message) for w in said] == [True]
    assert [finding.code for finding in run.history.findings] == ["non-finite-loss"]
    assert len(looked) == 1


def test_gradients_that_are_not_finite_are_said_once_too():
    def loss_fn(outputs, targets):
        return outputs.sub(outputs).pow(2).sum().sqrt() + F.cross_entropy(outputs, targets)

    model = linear()
    frozen = torch.optim.SGD(model.parameters(), 0.0)
    run = run_of(model, batches(), loss_fn=loss_fn, check="warn", optimizer=frozen, epochs=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        list(run)
    assert ["[non-finite-gradient]" in str(w.message) for w in said] == [True, False]
    # 0 times NaN is NaN: the weights are ruined after the first step, and so is the loss.
    codes = [finding.code for finding in run.history.findings]
    assert codes == ["learning-rate", "non-finite-gradient", "non-finite-loss"]


def test_an_epoch_in_which_nothing_counts_is_said_once():
    run = run_of(linear(), batches(y=torch.full((12,), -100)), check="warn")
    with pytest.warns(UserWarning, match="all-ignored") as said:
        assert len(list(run)) == 3
    assert len(said) == 1


def test_yes_and_no_out_of_range_are_said_once():
    targets = torch.full((12, 1), 3.0)
    targets[4:] = 7
    run = run_of(linear(1), batches(y=targets), loss_fn=nn.BCEWithLogitsLoss(), check="warn")
    with pytest.warns(UserWarning, match="target-range") as said:
        list(run)
    assert len(said) == 1


@pytest.mark.parametrize("falls", [False, True])
def test_sorted_targets_are_noted_as_they_pass_by_whichever_way_they_go(falls):
    order = IDS.argsort(stable=True)
    order = order.flip(0) if falls else order
    run = run_of(linear(), batches(X[order], IDS[order]))
    assert [finding.code for finding in next(run) and run.history.findings] == ["sorted-targets"]
    mixed = torch.cat([order, order.flip(0)])
    run = run_of(linear(), batches(X[mixed], IDS[mixed]))
    assert next(run)
    assert run.history.findings == []


@pytest.mark.parametrize("of_loss", [False, True])
def test_what_it_tries_out_moves_no_generator(of_loss):
    drawn = []

    def draws(outputs, targets):
        drawn.append((random.random(), float(np.random.rand()), torch.rand(()).item()))
        return (outputs.squeeze(1) - targets.reshape(-1)).square().mean()

    def states():
        return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()

    yes = (IDS > 0).float()
    before, model = states(), linear(1)
    with torch.random.fork_rng([]):
        if of_loss:
            found = scores.loss_findings(draws, model(X), yes)
        else:
            found = scores.findings_of(
                {"draws": draws}, model(X), yes, nn.BCEWithLogitsLoss(), is_asked=False
            )
        assert list(found) == []
    assert drawn
    assert states() == before


def test_a_failure_without_a_batch_is_not_explained():
    model = linear()
    preflight = preflight_of(model, torch.optim.SGD(model.parameters(), 0.1))
    preflight.explain(TypeError("train must hold pairs"), None)
    with pytest.raises(tc.ContractError, match="from 5 to 7"):
        preflight.explain(IndexError("Target 5"), (X[:3], IDS[:3] + 5))


def test_what_was_said_before_is_not_said_again_from_a_state():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    preflight = preflight_of(model, optimizer, check="warn")
    mean = Mean()
    mean.add(1.0, 0)
    with pytest.warns(UserWarning, match="all-ignored"):
        preflight.after_epoch(0, mean)
    resumed = preflight_of(model, optimizer)
    resumed.load_state_dict(copy.deepcopy(preflight.state_dict()))
    resumed.after_epoch(1, mean)
    assert [finding.code for finding in resumed.findings] == ["all-ignored"]
