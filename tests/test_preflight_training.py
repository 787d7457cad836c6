"""Model, optimizer and gradients: whether a step trains what is to be trained."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

import torchcls as tc

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(6) % 3


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def said(model, loss_fn=None, optimizer=None):
    found = tc.check(model, (X, IDS), loss_fn or nn.CrossEntropyLoss(), (), optimizer)
    return [(finding.code, finding.severity) for finding in found], " ".join(map(str, found))


def fitted(model, loss_fn=None, **keywords):
    return tc.fit(model, [(X, IDS)], loss_fn=loss_fn or nn.CrossEntropyLoss(), epochs=1,
                  progress=False, device="cpu", **keywords)  # fmt: skip


def test_an_optimizer_of_a_copy_is_found():
    model = network()
    optimizer = SGD(copy.deepcopy(model).parameters(), 0.1)
    codes, words = said(model, optimizer=optimizer)
    assert codes == [("optimizer-of-another-model", "error")]
    assert "Build it from model.parameters()" in words
    with pytest.raises(tc.ContractError, match="holds none of them"):
        fitted(model, optimizer=optimizer)


def test_a_new_head_that_the_optimizer_does_not_hold_is_found_also_with_a_loss_of_ones_own():
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    model[2] = nn.Linear(8, 3)
    for loss_fn in (F.cross_entropy, lambda o, t: F.cross_entropy(o, t)):
        codes, words = said(model, loss_fn, optimizer)
        assert codes == [("optimizer-misses", "error")]
        assert "2 of 4 trainable parameters (2.weight, 2.bias), but 2 that the model" in words
        with pytest.raises(tc.ContractError, match="after the last change of the model"):
            fitted(model, loss_fn, optimizer=optimizer)


def test_parameters_of_a_loss_in_a_closure_are_no_strangers():
    model, centres = network(), nn.Parameter(torch.eye(3))
    model[0].weight.requires_grad_(True)
    optimizer = SGD([*model[2].parameters(), centres], 0.1)
    loss_fn = lambda o, t: F.cross_entropy(o @ centres, t)  # noqa: E731
    assert said(model, loss_fn, optimizer)[0] == [("optimizer-part", "note")]
    assert [f.code for f in fitted(model, loss_fn, optimizer=optimizer).findings] == [
        "optimizer-part"
    ]


def test_a_frozen_model_is_found_and_the_fix_is_code():
    codes, words = said(network().requires_grad_(False))
    assert codes[0] == ("all-frozen", "error")
    assert "model[2].requires_grad_(True)" in words
    codes, words = said(nn.Linear(4, 3).requires_grad_(False))
    assert codes == [("all-frozen", "error")]
    assert "Unfreeze the head: model.requires_grad_(True)." in words


def test_a_frozen_model_under_a_loss_that_learns_is_left_alone():
    scale = nn.Parameter(torch.ones(()))
    model, loss_fn = network().requires_grad_(False), lambda o, t: F.cross_entropy(scale * o, t)
    assert said(model, loss_fn, SGD([scale], 0.1))[0] == []


class Cut(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.body, self.head, self.where = nn.Linear(4, 8), nn.Linear(8, 3), where

    def forward(self, x):
        features = self.body(x)
        if self.where == "body":
            features = features.detach()
        outputs = self.head(features)
        return outputs.detach() if self.where == "head" else outputs


def test_a_cut_behind_the_body_is_a_note_and_one_behind_the_head_an_error():
    codes, words = said(Cut("body"))
    assert codes == [("no-gradient", "note")]
    assert "2 of 4 parameters get no gradient from this batch (body.weight, body.bias)" in words
    codes, words = said(Cut("head"))
    assert codes == [("outputs-without-graph", "error")]
    with pytest.raises(tc.ContractError, match=r"cuts the graph \(torch.no_grad"):
        fitted(Cut("head"))


def test_an_optimizer_of_the_part_that_is_cut_off_is_an_error():
    model = Cut("body")
    codes, words = said(model, optimizer=SGD(model.body.parameters(), 0.1))
    assert codes == [("no-gradient", "error"), ("optimizer-part", "note")]
    assert "None of the 2 parameters to be trained gets a gradient" in words
    assert "(body.weight, body.bias)" in words


def test_a_loss_without_gradient_is_found():
    def wrong(outputs, targets):
        return (outputs.argmax(1) != targets).float().mean()

    codes, _ = said(network(), wrong)
    assert codes == [("loss-without-graph", "error")]
    with pytest.raises(tc.ContractError, match="Compute it from the scores"):
        fitted(network(), wrong)


def test_a_step_of_nothing_and_one_upwards_are_said():
    model = network()
    assert said(model, optimizer=SGD(model.parameters(), 0.0))[0] == [("learning-rate", "note")]
    up = SGD(model.parameters(), 0.1, maximize=True)
    assert said(model, optimizer=up)[0] == [("maximize", "warning")]
    assert said(model, lambda o, t: -F.cross_entropy(o, t), up)[0] == []


def test_parameters_of_a_loss_that_nobody_trains_are_a_note():
    class Margin(nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.eye(3))

        def forward(self, outputs, targets):
            return F.cross_entropy(outputs @ self.centres, targets)

    model = network()
    codes, words = said(model, Margin(), SGD(model.parameters(), 0.1))
    assert codes == [("loss-parameters", "note")]
    assert "*loss_fn.parameters()" in words


def head_only(run_before):
    """A network whose body was frozen when its optimizer was made, and maybe used."""
    model = network()
    model[0].requires_grad_(False)
    optimizer = SGD(filter(lambda p: p.requires_grad, model.parameters()), 0.1)
    if run_before:
        fitted(model, optimizer=optimizer)
    model.requires_grad_(True)
    return model, optimizer


def test_layers_that_were_unfrozen_behind_an_optimizer_that_has_stepped_are_doubted():
    codes, words = said(*(pair := head_only(run_before=True))[:1], optimizer=pair[1])
    assert codes == [("optimizer-part", "warning")]
    assert "(0.weight, 0.bias), which were frozen when it stepped last" in words
    with pytest.warns(UserWarning, match="add_param_group"):
        fitted(pair[0], optimizer=pair[1])


def test_a_part_that_an_optimizer_leaves_out_is_a_note_where_it_may_be_meant():
    model, optimizer = head_only(run_before=False)
    assert said(model, optimizer=optimizer)[0] == [("optimizer-part", "note")]
    for _ in range(2):  # the body has gradients in both runs
        fitted(model, optimizer=optimizer)
    assert said(model, optimizer=optimizer)[0] == [("optimizer-part", "note")]


class Stateless(nn.Module):
    """A network that is called with parameters from elsewhere."""

    def __init__(self, parameters):
        super().__init__()
        self.base, self.elsewhere = network().requires_grad_(False), lambda: parameters

    def forward(self, x):
        return torch.func.functional_call(self.base, self.elsewhere(), (x,))


def test_parameters_that_no_module_holds_are_seen_in_the_graph():
    parameters = {k: nn.Parameter(v.clone()) for k, v in network().named_parameters()}
    model, before = Stateless(parameters), parameters["2.bias"].clone()
    optimizer = SGD(parameters.values(), 0.1)
    assert said(model, optimizer=optimizer)[0] == []
    assert fitted(model, optimizer=optimizer).findings == []
    assert not torch.equal(before, parameters["2.bias"])
    of_copies = SGD([p.detach().clone().requires_grad_() for p in parameters.values()], 0.1)
    with pytest.raises(tc.ContractError, match="all-frozen"):
        fitted(model, optimizer=of_copies, ignore=["unheld-parameters"])


def with_norm(**keywords):
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, **keywords), nn.Linear(8, 3))


def test_batch_statistics_over_pieces_are_doubted_unless_they_are_frozen():
    with pytest.warns(UserWarning, match=r"BatchNorm \(1\).*each piece of micro_batch"):
        fitted(with_norm(), micro_batch=3)
    frozen = with_norm()
    frozen[1].eval()
    assert fitted(frozen, micro_batch=3).findings == []
    assert fitted(with_norm()).findings == []
    assert fitted(with_norm(), micro_batch=6).findings == []  # one piece


def test_a_piece_of_one_sample_names_micro_batch():
    with pytest.raises(tc.ContractError, match=r"1 sample at a time.*or micro_batch"):
        fitted(with_norm(), micro_batch=5, ignore=["batch-statistics"])


def test_running_statistics_that_never_move_are_doubted():
    codes, words = said(with_norm(momentum=0.0))
    assert codes == [("batch-statistics", "warning")]
    assert "BatchNorm1d '1' has momentum 0" in words
    trained = with_norm()
    fitted(trained)
    trained[1].momentum = 0.0  # frozen as they are
    assert said(trained)[0] == []


def test_frozen_weights_with_statistics_that_move_are_noted():
    model = with_norm()
    model[1].requires_grad_(False)
    found, words = said(model)
    assert found == [("batch-statistics", "note")]
    assert "BatchNorm (1) has frozen weights, but statistics that move" in words
    model[1].eval()
    assert said(model)[0] == []
    model.eval()  # of a model in evaluation mode, a run trains all modules
    assert said(model)[0] == [("batch-statistics", "note")]
    model = with_norm(track_running_stats=False)
    model[1].requires_grad_(False)
    assert said(model)[0] == []


class Masters(SGD):
    """Steps on float32 copies of the weights."""

    def __init__(self, parameters, lr):
        self.live = list(parameters)
        super().__init__([p.detach().clone().requires_grad_() for p in self.live], lr)

    def zero_grad(self, set_to_none=True):
        for parameter in self.live:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for parameter, copied in zip(self.live, self.param_groups[0]["params"], strict=True):
            copied.grad = parameter.grad
        super().step()
        for parameter, copied in zip(self.live, self.param_groups[0]["params"], strict=True):
            parameter.copy_(copied)


def test_an_optimizer_that_steps_on_copies_of_the_weights_is_left_alone():
    model = network()
    before = model[0].weight.detach().clone()
    history = fitted(model, optimizer=Masters(model.parameters(), 0.1))
    assert {finding.severity for finding in history.findings} == {"note"}
    assert not torch.equal(before, model[0].weight)
