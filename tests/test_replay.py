"""What a loader has handed out, handed out again."""

import random

import numpy as np
import pytest
import torch

from torchcls import replay
from torchcls.replay import CannotReplayError, Passed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def put_back():
    state = replay.global_state()
    yield
    replay.set_global_state(state)


class Drawing:
    """Each batch is drawn when it is asked for."""

    def __init__(self, n=6):
        self.n = n

    def __iter__(self):
        for _ in range(self.n):
            yield torch.rand(2), float(np.random.rand()) + random.random()


def gone_through(source, steps, *, between=lambda: torch.rand(1)):
    """Some steps on a source, each of which draws as a model does."""
    passed, seen = Passed(source, CPU), []
    for batch in passed.watched(source):
        seen.append(batch)
        between()
        passed.end_step()
        if passed.number == steps:
            break
    return passed, seen


def test_it_passes_over_what_was_seen_and_goes_on_with_the_rest():
    torch.manual_seed(0)
    _, whole = gone_through(Drawing(), 6)
    torch.manual_seed(0)
    np.random.seed(0), random.seed(0)
    _, whole = gone_through(Drawing(), 6)
    torch.manual_seed(0)
    np.random.seed(0), random.seed(0)
    passed, _ = gone_through(Drawing(), 3)
    kept = passed.state_dict()
    torch.rand(10), np.random.rand(), random.random()

    again = Passed(Drawing(), CPU)
    again.load_state_dict(kept)
    rest = []
    for batch in again.watched(again.passed_over(Drawing())):
        rest.append(batch)
        torch.rand(1)
        again.end_step()
    assert again.number == 6
    assert [batch[1] for batch in rest] == [batch[1] for batch in whole[3:]]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, whole[3:], strict=True))


def test_states_are_kept_only_where_the_loader_draws_after_somebody_else_has():
    assert len(gone_through(Drawing(), 5)[0].state_dict()["states"]) == 4
    assert gone_through(Drawing(), 5, between=lambda: None)[0].state_dict()["states"] == {}
    fixed = [(torch.ones(2), 1)] * 5
    assert gone_through(fixed, 5)[0].state_dict()["states"] == {}


def test_where_too_many_states_would_be_needed_it_says_so(monkeypatch):
    monkeypatch.setattr(replay, "_MOST_STATES", 2)
    passed, _ = gone_through(Drawing(), 3)
    assert len(list(passed.passed_over(Drawing()))) == 3
    passed, _ = gone_through(Drawing(), 4)
    with pytest.raises(CannotReplayError, match="between too many steps"):
        passed.passed_over(Drawing())


def test_a_source_that_ends_too_early_or_gives_something_else_is_noticed():
    passed, _ = gone_through(Drawing(), 4)
    with pytest.raises(CannotReplayError, match="it ended after 3 batches"):
        passed.passed_over(Drawing(3))
    fixed = [(torch.zeros(2), 1)] * 6
    with pytest.raises(CannotReplayError, match="handed out other batches"):
        passed.passed_over(fixed)


def test_inside_a_step_torchs_state_before_it_is_known_for_a_source_that_draws_nothing():
    fixed = [(torch.ones(2), 1)] * 5
    passed, _ = gone_through(fixed, 2)
    after = torch.get_rng_state()
    torch.rand(7)
    assert passed.look_inside_a_step()
    passed.wind_up()
    assert torch.equal(torch.get_rng_state(), after)
    np.random.rand()
    assert not passed.look_inside_a_step()
    passed.look_between_steps()
    assert passed.look_inside_a_step()
