"""matplotlib as the figures need it, whatever the user's own settings are.

Only files are drawn: by the Agg canvas and with matplotlib's defaults. A notebook's backend in MPLBACKEND, or a
matplotlibrc for somebody's papers (`text.usetex`, other sizes, a transparent ground), changes no figure here.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

from cnnjax.errors import InputError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def check() -> None:
    """Loads matplotlib, so that what keeps it from loading is said before hours of training and not after.

    Raises:
        InputError: it cannot be loaded, as with a matplotlibrc that is not text.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)  # one that matplotlib does not know keeps it from loading
    try:
        import matplotlib  # noqa: F401
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"matplotlib must load with the user's matplotlibrc, and does not: {said}") from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def own(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function under matplotlib's default settings; the user's are back when it returns."""

    @functools.wraps(draw)
    def drawn(*arguments: _P.args, **options: _P.kwargs) -> _R:
        check()
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams["text.parse_math"] = False  # a class may be called "$"
            return draw(*arguments, **options)

    return drawn


def make_logarithmic(axes: Any, which: Literal["x", "y"]) -> None:
    """Gives an axis a logarithmic scale, with ticks at 1, 2 and 5 of each power of ten, in plain digits.

    matplotlib's own are TeX, which `own` has drawn as it is written.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
