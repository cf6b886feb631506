"""target_distance in plain PyTorch: against training's own objective in float64, and the promises its docstring makes."""

import pytest
import torch
from host_sync import NoHostSync
from stretches import relative_error, tolerance
from targets import EPSILON, make_target

from kernels.target import plain_target_distance, plain_target_gradient, target_distance

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 17, 19), (130,)])
def test_distance_and_gradient_are_those_of_trainings_objective(shape, dtype):
    target = make_target(shape, dtype)
    v = target.given[0].requires_grad_()
    distance = target_distance(v, *target.given[1:], epsilon=EPSILON)
    distance.backward(target.gradient)
    assert distance.dtype == torch.float32 and v.grad.dtype == dtype
    torch.testing.assert_close(distance.double(), target.distance, rtol=1e-6, atol=0)
    assert relative_error(v.grad, target.d_v) < tolerance(dtype)


def test_a_sample_has_the_same_bits_alone_and_in_any_batch_and_keeps_what_is_not_a_number_to_itself():
    given = make_target((3, 8, 8), torch.float32).given
    together = target_distance(*given, epsilon=EPSILON)
    for i in range(len(together)):
        assert torch.equal(target_distance(*(part[i : i + 1] for part in given), epsilon=EPSILON), together[i : i + 1])
    given[2][3, 0, 0, 0] = float("nan")
    poisoned = target_distance(*given, epsilon=EPSILON)
    assert poisoned.isnan().tolist() == [i == 3 for i in range(8)]


def test_arguments_that_do_not_fit_are_refused_by_name():
    v, z, x_ref, x_teacher, table = make_target((3, 4, 4), torch.bfloat16).given
    for name, given in [
        ("z_t has shape", (v, z[:1], x_ref, x_teacher, table)),
        ("x_ref is", (v, z, x_ref.double(), x_teacher, table)),
        ("x_teacher is on meta", (v, z, x_ref, x_teacher.to("meta"), table)),
        ("coefficients", (v, z, x_ref, x_teacher, table[:, :5])),
    ]:
        with pytest.raises(ValueError, match=name):
            target_distance(*given, epsilon=EPSILON)


def test_the_operator_is_registered_soundly_and_reads_no_device_data_on_the_host():
    target = make_target((3, 4, 4), torch.float32)
    with NoHostSync():  # the mode does not see inside a registered operator
        _, facts = plain_target_distance(*target.given, EPSILON)
        plain_target_gradient(target.gradient, *target.given, facts)
    target.given[0].requires_grad_()
    torch.library.opcheck(torch.ops.stepdial.target_distance.default, (*target.given, EPSILON))
