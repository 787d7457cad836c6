"""``train_metrics=``: exact over an epoch, from the outputs of its own steps."""

import pytest
import torch
from torch import nn

import torchcls as tc

CE = nn.CrossEntropyLoss()


def model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data(n=45, *, seed=1):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def batches(size=16):
    return tc.Batches(*data(), batch_size=size, shuffle=True)


def valid():
    return [data(20, seed=2)]


def spread_of_hits(outputs, targets):
    """A metric that no mean over batches gives: of the whole split at once."""
    return (outputs.argmax(1) == targets).double().std()


class Counting:
    """An object as torchmetrics has them."""

    def reset(self):
        self.right = self.n = 0

    def update(self, outputs, targets):
        self.right += int((outputs.argmax(1) == targets).sum())
        self.n += len(targets)

    def compute(self):
        return self.right / self.n


def run(net, train, valid=None, **options):
    defaults = {"loss_fn": CE, "epochs": 2, "device": "cpu", "progress": False}
    return tc.fit(net, train, valid, **{**defaults, **options})


def by_hand(net, *, epochs=2):
    """Outputs and targets of each epoch, as the loop everyone writes sees them."""
    optimizer, train = tc.default_optimizer(net), batches()
    seen = []
    net.train()
    for _ in range(epochs):
        outputs = []
        for x, y in train:
            output = net(x)
            outputs.append((output.detach(), y))
            optimizer.zero_grad()
            CE(output, y).backward()
            optimizer.step()
        seen.append(tuple(map(torch.cat, zip(*outputs, strict=True))))
    return seen


def test_they_are_those_of_the_plain_loop():
    metrics = {"accuracy": tc.accuracy, "spread": spread_of_hits, "object": Counting()}
    history = run(model(), batches(), train_metrics=metrics)
    for record, (outputs, targets) in zip(history, by_hand(model()), strict=True):
        right = (outputs.argmax(1) == targets).double().mean().item()
        assert record["train_accuracy"] == right
        assert record["train_spread"] == spread_of_hits(outputs, targets).item()
        assert record["train_object"] == pytest.approx(record["train_accuracy"])


def test_they_stand_before_validation_and_change_nothing():
    both = {"metrics": [tc.accuracy], "train_metrics": [tc.accuracy]}
    nets = model(), model()
    history = run(nets[0], batches(), valid(), **both)
    assert list(history[0]) == [
        "epoch",
        "train_loss",
        "smooth_loss",
        "train_accuracy",
        "valid_loss",
        "accuracy",
        "time",
    ]
    without = run(nets[1], batches(), valid(), metrics=[tc.accuracy])
    assert [r.valid_loss for r in history] == [r.valid_loss for r in without]
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


def test_pieces_are_all_counted():
    nets = [nn.Linear(4, 3), nn.Linear(4, 3)]
    nets[1].load_state_dict(nets[0].state_dict())
    whole, cut = (
        run(net, batches(), train_metrics=[tc.accuracy, spread_of_hits], micro_batch=size)
        for net, size in zip(nets, (None, 5), strict=True)
    )
    for a, b in zip(whole, cut, strict=True):
        assert a["train_accuracy"] == b["train_accuracy"]
        assert a["train_spread_of_hits"] == pytest.approx(b["train_spread_of_hits"])


def test_inside_an_epoch_they_are_kept(tmp_path):
    options = {"train_metrics": [tc.accuracy, spread_of_hits], "save_every": 1e-9}
    expected = run(model(), batches(), **options)

    first = tc.epochs(
        model(),
        batches(),
        loss_fn=CE,
        epochs=2,
        device="cpu",
        progress=False,
        checkpoint=tmp_path,
        **options,
    )
    for at in first.steps():
        if (at.epoch, at.step) == (1, 2):
            break
    history = run(model(), batches(), checkpoint=tmp_path, resume=True, **options)
    assert [{**r, "time": 0} for r in history] == [{**r, "time": 0} for r in expected]


def test_an_object_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="train_metrics must be functions where there is a check"):
        run(model(), batches(), train_metrics=[Counting()], checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_metrics": {"loss": tc.accuracy}}, "train_loss is another column"),
        (
            {"train_metrics": [tc.accuracy], "metrics": {"train_accuracy": tc.accuracy}},
            "another column.*got 'train_accuracy'",
        ),
        ({"train_metrics": [tc.accuracy, tc.accuracy]}, "names of their own"),
    ],
)
def test_names_that_collide(options, words):
    with pytest.raises(ValueError, match=words):
        run(model(), batches(), valid(), **options)


class Narrow:
    """An object made for another number of classes."""

    def reset(self):
        pass

    def update(self, outputs, targets):
        raise ValueError("expected 2 columns")

    def compute(self):
        return 0.0


@pytest.mark.parametrize("metric", [tc.threshold_accuracy, Narrow()])
def test_what_cannot_score_stops_the_run_before_the_weights_move(metric):
    net = nn.Linear(4, 3)
    before = net.weight.clone()
    with pytest.raises(tc.ContractError, match=r"\[metric-(refuses|threshold)\]"):
        run(net, batches(), train_metrics={"m": metric})
    assert torch.equal(net.weight, before)
