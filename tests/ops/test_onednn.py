"""Programs by oneDNN's convolution: right in every form, with the gradient of a kernel left out, and never kept."""

import functools
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

from cnnjax import geometry, ops
from cnnjax.errors import InputError
from cnnjax.ops import compiler
from tests.cases import normal, some
from tests.ops.test_convolution import FORMS, close, conv_in_loops, convolutions, lax_conv

jit = functools.partial(ops.jit, onednn=True)
LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(autouse=True)
def only_with_onednn(only_on_cpu):
    if not compiler.has_onednn():
        pytest.skip("of an XLA that has oneDNN's convolution")


@pytest.mark.parametrize("examples", some([6, 80], 6))
def test_every_face_is_the_loops(examples):
    settings(deadline=None, derandomize=True, max_examples=examples)(given(convolutions())(every_face_is_the_loops))()


def every_face_is_the_loops(case):
    shapes, options, rounding = case
    images = normal(0, shapes["images"])
    kernel = normal(1, (*shapes["window"], images.shape[-1] // options["groups"], shapes["out_channels"]))
    sizes = {name: options[name] for name in ("strides", "padding", "dilation")}
    try:
        output, padding = geometry.place_windows(images.shape[1:-1], shapes["window"], rounding=rounding, **sizes)
    except InputError:
        return
    cotangent = normal(2, (images.shape[0], *output, kernel.shape[-1]))

    def with_gradients(conv):
        def both(images, kernel, cotangent):
            outputs, backward = jax.vjp(conv, images, kernel)
            return outputs, *backward(cotangent)

        return both

    ours = jit(with_gradients(functools.partial(ops.conv, rounding=rounding, **options)))(images, kernel, cotangent)
    geometry_of = (options["strides"], padding, options["dilation"], options["groups"])
    plain = with_gradients(lambda images, kernel: lax_conv(images, kernel, *geometry_of))
    loops = conv_in_loops(images, kernel, *geometry_of, output)
    close(ours, (jnp.asarray(loops, jnp.float32), *jax.jit(plain)(images, kernel, cotangent)[1:]), 1e-5)


@pytest.mark.parametrize("name", some(FORMS, "groups", "volume"))
def test_second_derivatives_members_and_loops(name):
    image_shape, kernel_shape, options = FORMS[name]
    images, kernel = normal(0, image_shape), normal(1, kernel_shape) / 4

    def loss(images, kernel):
        return jnp.sum(jnp.sin(ops.conv(images, kernel, **options)))

    def second(images, kernel):
        gradient = jax.grad(loss, (0, 1))
        return jax.grad(lambda *point: sum(jnp.vdot(one, one) for one in gradient(*point)), (0, 1))(images, kernel)

    def descended(kernel):
        def step(kernel, _):
            return kernel - 0.1 * jax.grad(loss, 1)(images, kernel), None

        return lax.scan(step, kernel, length=3)[0]

    close(jit(second)(images, kernel), ops.jit(second)(images, kernel), 1e-5)
    close(jit(descended)(kernel), ops.jit(descended)(kernel), 1e-5)
    pairs = np.stack([images, -images]), np.stack([kernel, kernel / 2])
    members = jit(jax.vmap(jax.grad(loss, (0, 1))))(*pairs)
    alone = [ops.jit(jax.grad(loss, (0, 1)))(*(pair[member] for pair in pairs)) for member in range(2)]
    close(members, jax.tree.map(lambda *leaves: np.stack(leaves), *alone), 1e-5)


def test_what_it_is_slow_at_is_left_to_eigen():
    """Each layer's output, and its images' gradient, by oneDNN; its kernel's gradient by XLA's own convolution."""

    def loss(kernels, images):
        for kernel in kernels:
            images = ops.conv(images, kernel, padding=1)
        return jnp.sum(images**2)

    kernels = [jnp.zeros((3, 3, channels, 8)) for channels in (3, 8, 8)]
    text = jit(jax.grad(loss)).lower(kernels, jnp.zeros((2, 12, 12, 3))).compile().as_text()
    assert text.count('custom_call_target="__onednn$convolution"') == 3 + 2
    own = re.findall(r"= f32\S+ convolution\(.*", text)
    assert len(own) == 3 and all("dim_labels=b01f_01io->b01f" in line for line in own)


def test_no_such_program_is_written_to_jaxs_cache(tmp_path):
    """XLA fails when it writes one down; what else is compiled is kept as before."""
    code = f"""
import warnings, jax, numpy as np
warnings.simplefilter("error")
jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
jax.config.update({LEAST_SECONDS!r}, 0)
from cnnjax import ops
x, kernel = np.ones((1, 8, 8, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
def by_onednn(x, kernel): return ops.conv(x, kernel)
def kept(x, kernel): return ops.conv(x, kernel)
made = ops.jit(by_onednn, onednn=True)
made.lower(x, kernel).compile()
assert np.asarray(made(x, kernel)).tolist() == np.asarray(ops.jit(kept)(x, kernel)).tolist()
assert jax.config.values[{LEAST_SECONDS!r}] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    names = " ".join(path.name for path in tmp_path.iterdir())
    assert "jit_kept" in names and "by_onednn" not in names


def test_the_setting_of_the_cache_is_as_it_was_after_many_threads():
    before = jax.config.values[LEAST_SECONDS]
    images, kernel = normal(0, (1, 6, 6, 2)), normal(1, (3, 3, 2, 2))
    found = []
    threads = [threading.Thread(target=lambda: found.append(jit(ops.conv)(images, kernel))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and jax.config.values[LEAST_SECONDS] == before
    with pytest.raises(TypeError):
        jit(lambda x: None + x)(images)
    assert jax.config.values[LEAST_SECONDS] == before and not compiler.lowers_for_onednn()


def test_one_function_either_way():
    """JAX keeps what it has lowered by function; the forms of one program are not those of the other."""
    images, kernel = jnp.zeros((1, 9, 9, 3)), jnp.zeros((3, 3, 3, 8))
    texts = [one(ops.conv).lower(images, kernel).compile().as_text() for one in (jit, ops.jit, jit, ops.jit)]
    assert ["__onednn" in text for text in texts] == [True, False, True, False]


def test_the_users_flags_hold(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=false --xla_foo=1")
    for cached in (compiler.has_onednn, compiler._known_options):
        cached.cache_clear()
    assert compiler.options_of_user() == ("xla_cpu_experimental_onednn_custom_call",)
    assert (
        not compiler.has_onednn()
        and "__onednn" not in jit(ops.conv).lower(jnp.zeros((1, 9, 9, 3)), jnp.zeros((3, 3, 3, 8))).compile().as_text()
    )
    monkeypatch.undo()
    for cached in (compiler.has_onednn, compiler._known_options):
        cached.cache_clear()
    assert compiler.has_onednn()
