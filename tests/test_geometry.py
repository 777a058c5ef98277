import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjax import geometry
from cnnjax.errors import InputError

fast = settings(deadline=None, derandomize=True, max_examples=200)


def count_windows(size, window, stride, low, high, dilation):
    """Windows by walking: the literal meaning of the output size."""
    reach = (window - 1) * dilation + 1
    return sum(1 for start in range(-low, size + high - reach + 1) if (start + low) % stride == 0)


@pytest.mark.parametrize(
    "size, window, stride, padding, output",
    [(7, 3, 1, 0, 5), (7, 3, 2, 0, 3), (7, 3, 3, 1, 3), (32, 5, 1, 0, 28), (7, 3, 1, 1, 7), (4, 2, 2, 0, 2)],
)
def test_output_size_is_the_lectures(size, window, stride, padding, output):
    assert geometry.output_size(size, window, stride, padding) == output


def test_six_5x5_filters_make_28x28x6_of_32x32x3():
    assert geometry.output_shape((32, 32), 5) == (28, 28)
    assert geometry.weight_count((5, 5), 3, 6) == 5 * 5 * 3 * 6 + 6


def test_ten_5x5_filters_on_three_channels_have_760_weights():
    assert geometry.weight_count((5, 5), 3, 10) == 760


def test_groups_share_the_in_channels_out():
    assert geometry.weight_count((3, 3), 8, 8, groups=4, bias=False) == 3 * 3 * 2 * 8
    with pytest.raises(InputError, match=r"groups must divide the channels \(8 in, 6 out\), got 4"):
        geometry.weight_count((3, 3), 8, 6, groups=4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"spatial": (7, 7), "window": 3, "strides": 3},
            "a 3×3 filter with stride 3 does not fit 7×7 with padding 0: (7 - 3 + 2·0)/3 + 1 = 2.33; "
            "padding 1 would fit",
        ),
        (
            {"spatial": (8, 8), "window": 3, "strides": 2},
            "a 3×3 filter with stride 2 does not fit 8×8 with padding 0: (8 - 3 + 2·0)/2 + 1 = 3.5; "
            "padding ((0, 1), (0, 1)) would fit",
        ),
        (
            {"spatial": (2,), "window": 5},
            "a filter of 5 with stride 1 does not fit 2 with padding 0: (2 - 5 + 2·0)/1 + 1 = -2; padding 2 would fit",
        ),
        (
            {"spatial": (7, 7), "window": 3, "strides": (1, 3), "dilation": 2, "padding": ((0, 1), (0, 0))},
            "a 3×3 filter (dilated to 5×5) with stride 1×3 does not fit 7×7 with padding ((0, 1), (0, 0)): "
            "(7 - 5 + 2·0)/3 + 1 = 1.67; padding 2 would fit",
        ),
        ({"spatial": (7, 7), "window": 3, "strides": 0}, "strides must be at least 1, got 0"),
        ({"spatial": (7, 7), "window": 3, "strides": (1, -1)}, "strides must be at least 1, got (1, -1)"),
        ({"spatial": (7, 7), "window": 3, "strides": 1.5}, "strides must be an integer or 2 of them, got 1.5"),
        (
            {"spatial": (7, 7), "window": (3, 3, 3)},
            "window must have one entry for each of the 2 dimensions, got (3, 3, 3)",
        ),
        ({"spatial": (7, 7), "window": 3, "padding": -1}, "padding must be at least 0, got -1"),
        ({"spatial": (7, 7), "window": 3, "padding": "HALF"}, "padding must be numbers, 'SAME' or 'VALID', got 'HALF'"),
        (
            {"spatial": (7, 7), "window": 3, "padding": (1, 2, 3)},
            "padding must be a number, a number or a pair (low, high) for each of the 2 dimensions, 'SAME' or 'VALID', "
            "got (1, 2, 3)",
        ),
        (
            {"spatial": (7, 7), "window": 3, "padding": ((1, 2, 3), 1)},
            "padding must be made of integers or pairs (low, high) of them, got ((1, 2, 3), 1)",
        ),
        ({"spatial": (7, 7), "window": 3, "rounding": "up"}, "rounding must be one of exact, floor, ceil, got 'up'"),
    ],
)
@pytest.mark.wrong_types
def test_errors_name_argument_rule_value_and_what_fits(arguments, message):
    with pytest.raises(InputError) as error:
        geometry.place_windows(**arguments)
    assert str(error.value) == message


@fast
@given(
    size=st.integers(1, 20),
    window=st.integers(1, 6),
    stride=st.integers(1, 4),
    low=st.integers(0, 3),
    high=st.integers(0, 3),
    dilation=st.integers(1, 3),
)
def test_floor_counts_the_windows(size, window, stride, low, high, dilation):
    counted = count_windows(size, window, stride, low, high, dilation)
    if counted:
        assert geometry.output_size(size, window, stride, (low, high), "floor", dilation) == counted
    else:
        with pytest.raises(InputError):
            geometry.output_size(size, window, stride, (low, high), "floor", dilation)


@fast
@given(size=st.integers(1, 30), window=st.integers(1, 9), stride=st.integers(1, 5), padding=st.integers(0, 3))
def test_ceil_adds_just_the_zeros_that_make_the_filter_fit(size, window, stride, padding):
    """Also for a window larger than the image by less than a stride, as in PyTorch and Caffe."""
    if window - size - 2 * padding >= stride:
        with pytest.raises(InputError, match="does not fit"):
            geometry.place_windows((size,), window, strides=stride, padding=padding, rounding="ceil")
        return
    output, ((low, high),) = geometry.place_windows((size,), window, strides=stride, padding=padding, rounding="ceil")
    assert output[0] == -(-(size - window + 2 * padding) // stride) + 1
    assert low == padding and padding <= high < padding + stride
    assert geometry.output_size(size, window, stride, (low, high), "exact") == output[0]


@fast
@given(size=st.integers(1, 30), window=st.integers(1, 7), stride=st.integers(1, 4), dilation=st.integers(1, 2))
def test_same_makes_one_output_for_each_stride(size, window, stride, dilation):
    for rounding in ("exact", "floor", "ceil"):
        assert geometry.output_size(size, window, stride, "SAME", rounding, dilation) == -(-size // stride)


@fast
@given(size=st.integers(1, 30), window=st.integers(1, 7), stride=st.integers(1, 4), dilation=st.integers(1, 2))
def test_fitting_paddings_fit(size, window, stride, dilation):
    symmetric, smallest = geometry.fitting_paddings(size, window, stride, dilation)
    for padding in (*symmetric, smallest):
        geometry.output_size(size, window, stride, padding, "exact", dilation)
    reach = geometry.effective_window(window, dilation)
    if stride % 2 == 0 and (size - reach) % 2:
        assert not symmetric
    elif stride <= 2 * reach:
        assert symmetric or stride > reach


def test_valid_is_no_padding_and_obeys_the_rounding():
    assert geometry.output_size(7, 3, 2, "VALID") == 3
    assert geometry.output_size(8, 3, 2, "VALID", "floor") == 3
    with pytest.raises(InputError, match="does not fit"):
        geometry.output_size(8, 3, 2, "VALID")


@fast
@given(size=st.integers(1, 20), window=st.integers(1, 5), stride=st.integers(1, 4), padding=st.integers(0, 2))
def test_transposed_output_size_undoes_the_output_size(size, window, stride, padding):
    if window > size + 2 * padding:
        return
    output = geometry.output_size(size, window, stride, padding, "floor")
    remainder = (size - window + 2 * padding) % stride
    assert geometry.transposed_output_size(output, window, stride, padding, remainder=remainder) == size


def test_transposed_output_size_refuses_what_no_stride_leaves():
    with pytest.raises(InputError, match=r"remainder must be from 0 to stride - 1 \(1\), got 2"):
        geometry.transposed_output_size(4, 3, 2, remainder=2)
    with pytest.raises(InputError, match="padding must leave at least one pixel"):
        geometry.transposed_output_size(1, 3, 1, 2)


def test_receptive_field_of_the_first_layers_of_zfnet():
    # Zeiler & Fergus 2014, figure 3: 7×7/2 with padding 1, pool 3×3/2 with padding 1, 5×5/2
    field = geometry.ReceptiveField()
    field = geometry.compose(field, 7, 2, 1)
    assert field == (7, 2, 2.0)
    field = geometry.compose(field, 3, 2, 1)
    assert field == (11, 4, 2.0)
    assert geometry.compose(field, 5, 2) == (27, 8, 10.0)


@fast
@given(
    layers=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)), min_size=1, max_size=3
    )
)
def test_receptive_field_is_what_a_unit_reaches(layers):
    field = geometry.ReceptiveField()
    seen = {unit: (unit, unit) for unit in range(-60, 120)}  # pixels that a unit reaches, padding included
    for window, stride, padding, dilation in layers:
        field = geometry.compose(field, window, stride, padding, dilation)
        reach = (window - 1) * dilation
        seen = {
            unit: (seen[first][0], seen[first + reach][1])
            for unit in range(-60, 120)
            if (first := unit * stride - padding) in seen and first + reach in seen
        }
    for unit in (0, 1, 2):
        first, last = seen[unit]
        assert last - first + 1 == field.size
        np.testing.assert_equal((first + last) / 2, field.start + unit * field.jump)


def test_costs_in_three_dimensions():
    assert geometry.multiply_adds((4, 5, 6), (3, 3, 3), 2, 8) == 4 * 5 * 6 * 27 * 2 * 8
    assert geometry.flops((4, 5, 6), (3, 3, 3), 2, 8) == 2 * 4 * 5 * 6 * 27 * 2 * 8
    assert geometry.activation_bytes((16, 55, 55, 96)) == 16 * 55 * 55 * 96 * 4
    assert geometry.activation_bytes((10, 3), 2) == 60
