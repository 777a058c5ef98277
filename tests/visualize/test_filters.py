import numpy as np
import pytest

from cnnjax.errors import InputError
from cnnjax.visualize.filters import (
    aliased_share,
    band_shares,
    dead_filters,
    filter_rms,
    measure,
    power_spectrum,
    radial_frequency,
    radial_power,
)


def sinusoid(size, rows, columns):
    """A wave with so many periods down and across."""
    place = np.arange(size) / size
    return np.cos(2 * np.pi * (rows * place[:, None] + columns * place))


def test_the_energy_of_a_filter_is_kept():
    kernel = np.random.default_rng(0).normal(size=(7, 5, 3, 4))
    power = power_spectrum(kernel, 16)
    np.testing.assert_allclose(power.sum(axis=(0, 1)), (kernel**2).sum(axis=(0, 1, 2)))
    np.testing.assert_allclose(band_shares(power).sum(axis=0), 1)


@pytest.mark.parametrize(
    ("periods", "band"), [((0, 0), 0), ((3, 1), 0), ((4, 0), 1), ((5, 5), 1), ((6, 6), 2), ((0, 16), 2)]
)
def test_a_wave_has_its_power_in_one_band(periods, band):
    shares = band_shares(power_spectrum(sinusoid(32, *periods)[:, :, None, None], 32))
    np.testing.assert_allclose(shares[:, 0], np.eye(3)[band], atol=1e-12)


def test_a_wave_has_its_power_in_one_ring():
    frequencies, rings = radial_power(power_spectrum(sinusoid(32, 0, 5)[:, :, None, None], 32))
    np.testing.assert_allclose(frequencies, (np.arange(8) + 0.5) / 16)
    assert (rings[:, 0] > 1e-9).tolist() == [False] * 2 + [True] + [False] * 5  # 5/32 lies in 2/16 to 3/16


def test_a_single_weight_and_white_noise_are_flat():
    impulse = np.zeros((7, 7, 1, 1))
    impulse[2, 3] = 4
    np.testing.assert_allclose(radial_power(power_spectrum(impulse))[1], 1)
    noise = np.random.default_rng(0).normal(size=(32, 32, 1, 500))
    power = power_spectrum(noise, 32)
    np.testing.assert_allclose(radial_power(power)[1].mean(axis=1), 1, atol=0.03)
    frequency = radial_frequency(32)
    of_grid = [
        np.mean(frequency < 0.125),
        np.mean((frequency >= 0.125) & (frequency < 0.25)),
        np.mean(frequency >= 0.25),
    ]
    np.testing.assert_allclose(band_shares(power).mean(axis=1), of_grid, atol=0.005)


def test_the_transform_must_hold_the_filter():
    with pytest.raises(InputError, match=r"size must be at least that of the filter \(7\), got 4"):
        power_spectrum(np.ones((7, 5, 1, 1)), 4)


def test_zero_and_far_weaker_filters_are_dead():
    kernel = np.ones((3, 3, 2, 5)) * np.array([1.0, 0, 0.05, 2, 1])
    np.testing.assert_allclose(filter_rms(kernel), [1, 0, 0.05, 2, 1])
    assert dead_filters(kernel).tolist() == [False, True, True, False, False]
    assert dead_filters(np.zeros((3, 3, 1, 2))).all()
    # more than half are zero, and the others live
    assert dead_filters(np.ones((3, 3, 1, 3)) * np.array([0, 0, 0.01])).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("periods", "stride", "share"), [(7, 1, 0), (16, 1, 0), (7, 2, 0), (8, 2, 0), (9, 2, 1), (5, 4, 1), (3, 4, 0)]
)
def test_a_wave_is_aliased_above_the_strides_nyquist_frequency(periods, stride, share):
    impulse = np.zeros((3, 3, 1, 1))
    impulse[1, 1] = 1
    found = aliased_share(impulse, sinusoid(32, periods, 0)[None, :, :, None], stride)
    np.testing.assert_allclose(found, share, atol=1e-12)


def test_of_noise_all_but_the_strides_band_is_aliased():
    images = np.random.default_rng(0).normal(size=(70, 32, 32, 3))  # more than a block
    impulse = np.zeros((1, 1, 3, 1))
    impulse[0, 0, 1] = 1
    np.testing.assert_allclose(aliased_share(impulse, images, 2), 1 - (17**2 - 1) / (32**2 - 1), atol=0.01)
    np.testing.assert_allclose(aliased_share(impulse, images, 4), 1 - (9**2 - 1) / (32**2 - 1), atol=0.01)


def test_the_aliased_energy_is_that_which_a_loop_over_pixels_loses():
    """Independent: responses by a loop over pixels, low-pass filtered, and what is missing then."""
    generator = np.random.default_rng(0)
    kernel, image = generator.normal(size=(3, 3, 2, 1)), generator.normal(size=(8, 8, 2))
    response = np.zeros((8, 8))
    for row in range(8):
        for column in range(8):
            for i in range(3):
                for j in range(3):
                    response[row, column] += kernel[i, j, :, 0] @ image[(row + i) % 8, (column + j) % 8]
    response -= response.mean()
    spectrum = np.fft.fftshift(np.fft.fft2(response))
    kept = np.zeros((8, 8))
    kept[2:7, 2:7] = 1  # frequencies -2/8 to 2/8, as fftshift orders them
    low_pass = np.fft.ifft2(np.fft.ifftshift(spectrum * kept)).real
    share = 1 - np.sum(low_pass**2) / np.sum(response**2)
    np.testing.assert_allclose(aliased_share(kernel, image[None], 2), share)


def test_filters_of_zeros_have_no_spectrum_and_no_aliasing():
    zero, images = np.zeros((3, 3, 1, 2)), np.ones((2, 8, 8, 1))
    assert not aliased_share(zero, images, 4).any() and not band_shares(power_spectrum(zero)).any()
    assert not radial_power(power_spectrum(zero))[1].any()
    measures = measure(zero, images, 2)
    assert measures.dead == 1 and np.isnan(measures[1:]).all()


def test_images_must_hold_the_filter():
    with pytest.raises(InputError, match=r"images must be at least as large as the filters \(9, 3\), got \(8, 8\)"):
        aliased_share(np.ones((9, 3, 1, 1)), np.ones((1, 8, 8, 1)), 2)


def test_the_measures_leave_dead_filters_out():
    waves = [sinusoid(32, 5, 0), 3 * sinusoid(32, 0, 14), 0 * sinusoid(32, 0, 0), sinusoid(32, 6, 0)]
    kernel = np.stack(waves, axis=-1)[:, :, None]
    noise = np.random.default_rng(0).normal(size=(4, 32, 32, 1))
    measures = measure(kernel, noise, 2)
    assert (measures.dead, measures.ruling) == (0.25, pytest.approx(3))
    np.testing.assert_allclose(measures[2:], [0, 2 / 3, 1 / 3, 1 / 3], atol=1e-9)
