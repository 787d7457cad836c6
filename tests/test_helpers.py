"""The helpers refuse what is wrong: a comparison that cannot fail proves nothing."""

import pytest
import torch
from helpers import assert_both_raise, assert_same_as_torch
from torch import Tensor


def square(x: Tensor, scale: Tensor | None = None) -> Tensor:
    return x * x if scale is None else x * x * scale


X = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)


# ------------------------------------------------------------------ assert_same_as_torch


def test_same_accepts_the_same_function():
    assert_same_as_torch(lambda x: x * x, square, X)
    assert_same_as_torch(square, square, X, scale=torch.ones(3, requires_grad=True))
    assert_same_as_torch(square, square, torch.tensor([float("nan")]))


def test_same_leaves_the_arguments_as_they_were():
    assert_same_as_torch(square, square, X)
    assert X.grad is None


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        pytest.param(lambda x: x * x + 1e-3, "value", id="value"),
        pytest.param(lambda x: (x * x).double(), "value", id="dtype"),
        pytest.param(lambda x: (x * x)[None], "value", id="shape"),
        pytest.param(lambda x: (x * x).flip(0), "value", id="order"),
        # x^2 as far as the value goes, no gradient
        pytest.param(lambda x: x.detach() ** 2, "gradient in argument 0", id="no gradient"),
        # value x^2, gradient 3 x
        pytest.param(
            lambda x: x.detach() ** 2 + 1.5 * (x**2 - x.detach() ** 2),
            "gradient in argument 0",
            id="gradient",
        ),
        # value x^2, gradient 2 x, second gradient 0
        pytest.param(
            lambda x: 2 * x.detach() * x - x.detach() ** 2,
            "second gradient in argument 0",
            id="second gradient",
        ),
    ],
)
def test_same_refuses_a_wrong(wrong, what):
    with pytest.raises(AssertionError, match=f"^{what}:"):
        assert_same_as_torch(wrong, square, X)


def test_same_refuses_a_gradient_that_is_wrong_in_one_row_only():
    def wrong(x: Tensor) -> Tensor:
        gate = torch.tensor([1.0, 1.0, 0.0])
        return x * x * gate + (x * x * (1 - gate)).detach()

    with pytest.raises(AssertionError, match=r"^gradient in argument 0:"):
        assert_same_as_torch(wrong, square, X)


def test_same_refuses_gradients_swapped_between_rows():
    def wrong(x: Tensor) -> Tensor:  # the value of each row, the gradient of its mirror image
        return (x * x).detach() + (x * x).flip(0) - (x * x).flip(0).detach()

    with pytest.raises(AssertionError, match=r"^gradient in argument 0:"):
        assert_same_as_torch(wrong, square, X)


def test_same_refuses_a_wrong_gradient_in_a_keyword():
    def wrong(x: Tensor, scale: Tensor) -> Tensor:
        return square(x, scale.detach())

    with pytest.raises(AssertionError, match=r"^gradient in scale:"):
        assert_same_as_torch(wrong, square, X, scale=torch.ones(3, requires_grad=True))


# ------------------------------------------------------------------ assert_both_raise


def raises(kind: type[Exception]):
    def function(x: Tensor) -> Tensor:
        raise kind("no")

    return function


def test_both_raise_accepts_two_errors():
    assert_both_raise(raises(ValueError), raises(RuntimeError), X)


def test_both_raise_refuses_arguments_that_torch_accepts():
    with pytest.raises(AssertionError, match="torch accepts"):
        assert_both_raise(raises(ValueError), square, X)


def test_both_raise_refuses_arguments_that_we_accept():
    with pytest.raises(AssertionError, match="we accept"):
        assert_both_raise(square, raises(RuntimeError), X)


def test_both_raise_refuses_an_error_that_blames_nobody():
    with pytest.raises(AssertionError, match="RuntimeError"):
        assert_both_raise(raises(RuntimeError), raises(RuntimeError), X)
