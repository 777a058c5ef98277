"""Numbers for what is seen of first-layer filters: dead ones, ruling ones, their frequencies, and aliasing.

Zeiler & Fergus 2014, section 4.1 and figure 6, compare filters by eye: one filter rules the others without
renormalization; large filters with a large stride have few middle frequencies and many dead filters; and the stride
aliases what the second layer sees. Frequencies are in cycles a pixel, 0 to 1/2 along an axis.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cnnjax.errors import InputError

BANDS = (0.125, 0.25)  # cycles a pixel: below the first low, from there to the second middle, above it high
DEAD_SHARE = 0.1  # of the median filter's root mean square
_BLOCK = 32  # images whose spectra stand in memory together


class FilterMeasures(NamedTuple):
    """One layer of filters in a few numbers; shares from 0 to 1."""

    dead: float  # share of filters far weaker than the layer's median
    ruling: float  # the strongest filter's root mean square, as a multiple of the median of those alive
    low: float  # share of the energy, mean over the filters that are not dead; NaN where all are
    middle: float
    high: float
    aliased: float  # share of the responses' energy that the stride folds onto other frequencies


def filter_rms(kernel: Float[np.ndarray, "height width channels filters"]) -> Float[np.ndarray, " filters"]:
    """Root mean square of each filter's weights."""
    return np.sqrt(np.mean(np.asarray(kernel, np.float64) ** 2, axis=(0, 1, 2)))


def dead_filters(kernel: Float[np.ndarray, "height width channels filters"], share: float = DEAD_SHARE) -> np.ndarray:
    """True for filters of zeros, and for those whose root mean square is at most `share` of the median filter's."""
    rms = filter_rms(kernel)
    return (rms == 0) | (rms <= share * np.median(rms))


def power_spectrum(
    kernel: Float[np.ndarray, "height width channels filters"], size: int = 32
) -> Float[np.ndarray, "size size filters"]:
    """The energy of each filter by frequency, summed over input channels, on the grid of a size×size transform.

    Frequencies as `numpy.fft.fftfreq` orders them. The sum over a filter's frequencies is that of its squared weights.

    Args:
        size: of the transform, at least the filter's; the filter is filled up with zeros.
    """
    if size < max(kernel.shape[:2]):
        raise InputError(f"size must be at least that of the filter ({max(kernel.shape[:2])}), got {size}")
    spectrum = np.fft.fft2(np.asarray(kernel, np.float64), (size, size), axes=(0, 1))
    return np.sum(np.abs(spectrum) ** 2, axis=2) / size**2


def radial_frequency(size: int) -> Float[np.ndarray, "size size"]:
    """The length of the frequency at each place of a size×size transform, cycles a pixel."""
    along = np.fft.fftfreq(size)
    return np.hypot(along[:, None], along)


def radial_power(
    power: Float[np.ndarray, "size size filters"], rings: int = 8
) -> tuple[Float[np.ndarray, " rings"], Float[np.ndarray, "rings filters"]]:
    """The middle frequency of rings of equal width up to 1/2, and each filter's mean power in them.

    Relative to the filter's mean over all frequencies, so that white noise is 1 throughout; 0 for a filter of zeros.
    """
    frequency = radial_frequency(len(power))
    edges = np.linspace(0, 0.5, rings + 1)
    means = np.stack(
        [power[(low <= frequency) & (frequency < high)].mean(axis=0) for low, high in itertools.pairwise(edges)]
    )
    mean = power.mean(axis=(0, 1))
    return (edges[:-1] + edges[1:]) / 2, means / np.where(mean > 0, mean, 1)


def band_shares(
    power: Float[np.ndarray, "size size filters"], bands: tuple[float, float] = BANDS
) -> Float[np.ndarray, "3 filters"]:
    """The shares of each filter's energy at low, middle and high frequencies; 0 for a filter of zeros.

    White noise has π b₀² low, π (b₁² - b₀²) in the middle and the rest high: 5, 15 and 80 % with the default bands.
    """
    frequency = radial_frequency(len(power))
    low, high = frequency < bands[0], frequency >= bands[1]
    total = power.sum(axis=(0, 1))
    energy = np.stack([power[part].sum(axis=0) for part in (low, ~low & ~high, high)])
    return energy / np.where(total > 0, total, 1)


def aliased_share(
    kernel: Float[np.ndarray, "height width channels filters"],
    images: Float[np.ndarray, "n image_height image_width channels"],
    stride: int,
) -> Float[np.ndarray, " filters"]:
    """The share of the energy of each filter's responses to the images that a stride folds onto other frequencies.

    A response taken at every pixel holds frequencies up to 1/2 along each axis; taken at every `stride`-th, only those
    up to 1/(2 stride), and the energy of the others turns up at wrong ones. This is that energy, before ReLU, about the
    mean of each response, with images that go on periodically. 0 for stride 1, and for filters of zeros. What a pool
    does is not counted.
    """
    height, width = images.shape[1:3]
    if height < kernel.shape[0] or width < kernel.shape[1]:
        raise InputError(f"images must be at least as large as the filters {kernel.shape[:2]}, got {(height, width)}")
    transfer = np.conj(np.fft.fft2(np.asarray(kernel, np.float64), (height, width), axes=(0, 1)))
    lost = np.maximum(np.abs(np.fft.fftfreq(height))[:, None], np.abs(np.fft.fftfreq(width))) > 0.5 / stride
    energy = np.zeros((height, width, kernel.shape[-1]))
    for start in range(0, len(images), _BLOCK):
        spectra = np.fft.fft2(images[start : start + _BLOCK], axes=(1, 2))
        responses = np.einsum("nhwc,hwcf->nhwf", spectra, transfer)
        energy += np.sum(np.abs(responses) ** 2, axis=0)
    energy[0, 0] = 0  # the mean, which has no place, and of photographs most of the energy
    total = energy.sum(axis=(0, 1))
    return energy[lost].sum(axis=0) / np.where(total > 0, total, 1)


def measure(
    kernel: Float[np.ndarray, "height width channels filters"],
    images: Float[np.ndarray, "n image_height image_width channels"],
    stride: int,
) -> FilterMeasures:
    """The numbers of a first layer; `images` as the network takes them. Dead filters count in none but the first."""
    dead, rms = dead_filters(kernel), filter_rms(kernel)
    if dead.all():
        return FilterMeasures(1.0, *[float("nan")] * 5)
    alive = kernel[..., ~dead]
    low, middle, high = band_shares(power_spectrum(alive, max(32, *kernel.shape[:2]))).mean(axis=1)
    aliased = aliased_share(alive, images, stride).mean()
    numbers = dead.mean(), rms.max() / np.median(rms[~dead]), low, middle, high, aliased
    return FilterMeasures(*(float(number) for number in numbers))
