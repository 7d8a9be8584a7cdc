"""Head of a graph: pooling and the modules after it, which turn hidden states into vectors."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models.blocks import ACTIVATIONS
from workers.models.json_files import REMEDY, ModelError
from workers.models.layout import LOWEST, PaddedLayout, make_integer, make_integers, make_scalar
from workers.models.modules import PROMPT_TOKENS, Dense, LayerNorm, Modules, Normalize, Pooling
from workers.models.weights import Weights

#: Smallest divisors, as in torch.nn.functional.normalize and in the pooling of sentence-transformers.
NORMALIZE_EPSILON = 1e-12
MEAN_EPSILON = 1e-9
#: Default of torch.nn.LayerNorm.
_LAYER_NORM_EPSILON = 1e-5
#: Activations of Dense modules.
_DENSE_ACTIVATIONS = {
    "Tanh": op.tanh,
    "Identity": lambda x: x,
    "GELU": ACTIVATIONS["gelu"],
    "ReLU": op.relu,
    "Sigmoid": op.sigmoid,
    "SiLU": op.swish,
}


def make_model(hidden: Any, layout: PaddedLayout, modules: Modules, name: str) -> ov.Model:
    """Return the model that makes the vectors of texts from hidden states, as the modules do.

    `hidden` is float32 `[batch, length, size]`, or `[batch, size]` for modules without pooling. The outputs are
    `embedding`, float32 `[batch, size]`, and if the last module normalizes, `divisor` `[batch, 1]`. Raise `ModelError`
    if the weights of a module are damaged or do not fit.
    """
    inputs, prompt_tokens = layout.inputs, None
    if modules.excludes_prompt:
        prompt_tokens = op.parameter([-1], np.int64, name=PROMPT_TOKENS)
        inputs = [*inputs, prompt_tokens]
    outputs = _build_outputs(layout.pad_states(hidden), layout.mask, prompt_tokens, modules)
    for output, title in zip(outputs, ("embedding", "divisor"), strict=False):
        output.output(0).set_names({title})
    return ov.Model(outputs, inputs, name)


def _build_outputs(hidden: Any, mask: Any, prompt_tokens: Any | None, modules: Modules) -> list[Any]:
    value, divisor = hidden, None
    for step in modules.steps:
        if isinstance(step, Dense | LayerNorm):
            _check_size(value, step)
        if isinstance(step, Pooling):
            value = _pool_states(value, mask, prompt_tokens, step.modes)
        elif isinstance(step, Normalize):
            value, divisor = _normalize(value)
        elif isinstance(step, Dense):
            value = _apply_dense(value, step)
        else:
            value = _apply_layer_norm(value, step)
    if modules.truncate_dim is not None:
        value = op.slice(
            value, make_integers(0), make_integers(modules.truncate_dim), make_integers(1), make_integers(-1)
        )
    return [value, divisor] if modules.is_normalized else [value]


def _normalize(vectors: Any) -> tuple[Any, Any]:
    """Return vectors scaled to length 1 over their last axis, and the divisors."""
    norm = op.sqrt(op.reduce_sum(op.multiply(vectors, vectors), make_integers(-1), True))
    divisor = op.maximum(norm, make_scalar(NORMALIZE_EPSILON))
    return op.divide(vectors, divisor), divisor


def _check_size(value: Any, step: Dense | LayerNorm) -> None:
    key, wanted = ("in_features", step.into) if isinstance(step, Dense) else ("dimension", step.size)
    size = value.output(0).get_partial_shape()[-1]
    if size.is_static and size.get_length() != wanted:
        raise ModelError(
            f"{step.folder / 'config.json'}: {key} is {wanted}, but the module before it returns {size.get_length()} "
            f"values; {REMEDY}"
        )


def _apply_dense(x: Any, dense: Dense) -> Any:
    weights = Weights(dense.folder)

    def project(name: str) -> Any:
        # Copied, because the mapped file does not outlive this function.
        return op.matmul(x, op.constant(weights.get_tensor(f"{name}.weight", dense.out, dense.into)), False, True)

    linear = project("linear")
    if dense.has_bias:
        linear = op.add(linear, op.constant(weights.get_tensor("linear.bias", dense.out)))
    y = _DENSE_ACTIVATIONS[dense.activation](linear)
    if not dense.is_residual:
        return y
    return op.add(y, x if dense.into == dense.out else project("residual"))


def _apply_layer_norm(x: Any, norm: LayerNorm) -> Any:
    weights = Weights(norm.folder)
    normal = op.mvn(x, make_integers(-1), True, _LAYER_NORM_EPSILON, "INSIDE_SQRT")
    scaled = op.multiply(normal, op.constant(weights.get_tensor("norm.weight", norm.size)))
    return op.add(scaled, op.constant(weights.get_tensor("norm.bias", norm.size)))


def _pool_states(hidden: Any, mask: Any, prompt_tokens: Any | None, modes: Sequence[str]) -> Any:
    """Return the concatenated vectors of several pooling modes, float32 `[batch, modes * size]`.

    `mask` is float32 `[batch, length]`: 1 for tokens and 0 for padding, which may be on either side.
    """
    positions = op.cum_sum(mask, make_integer(1))
    if prompt_tokens is not None:
        prompt = op.unsqueeze(op.convert(prompt_tokens, "f32"), make_integers(1))
        mask = op.multiply(mask, op.convert(op.greater(positions, prompt), "f32"))
    vectors = [_POOL[mode](hidden, mask, positions) for mode in modes]
    return vectors[0] if len(vectors) == 1 else op.concat(vectors, -1)


def _get_positions(mask: Any) -> Any:
    """Return the place of each token in its row, padding included, int64 `[length]`."""
    length = op.gather(op.shape_of(mask), make_integers(1), make_integer(0))
    return op.range(make_integer(0), op.squeeze(length, make_integers(0)), make_integer(1), "i64")


def _find_first(mask: Any) -> Any:
    """Return the place of the first token of each row, int64 `[batch, 1]`; 0 if a row has none."""
    before = op.equal(op.cum_sum(mask, make_integer(1)), make_scalar(0))
    count = op.reduce_sum(op.convert(before, "i64"), make_integers(1), True)
    has_tokens = op.convert(op.reduce_max(mask, make_integers(1), True), "i64")
    return op.multiply(count, has_tokens)


def _pick(hidden: Any, place: Any) -> Any:
    picked = op.gather(hidden, place, make_integer(1), 1)
    return op.squeeze(picked, make_integers(1))


def _pool_first(hidden: Any, mask: Any, _: Any) -> Any:
    return _pick(hidden, _find_first(mask))


def _pool_last(hidden: Any, mask: Any, _: Any) -> Any:
    places = op.multiply(op.convert(mask, "i64"), op.unsqueeze(_get_positions(mask), make_integers(0)))
    return _pick(hidden, op.reduce_max(places, make_integers(1), True))


def _pool_max(hidden: Any, mask: Any, _: Any) -> Any:
    is_token = op.greater(op.unsqueeze(mask, make_integers(2)), make_scalar(0))
    return op.reduce_max(op.select(is_token, hidden, make_scalar(LOWEST)), make_integers(1), False)


def _sum_states(hidden: Any, weights: Any) -> tuple[Any, Any]:
    """Return the weighted sum of the hidden states, and the sum of the weights, which is never 0."""
    total = op.reduce_sum(op.multiply(hidden, op.unsqueeze(weights, make_integers(2))), make_integers(1), False)
    return total, op.maximum(op.reduce_sum(weights, make_integers(1), True), make_scalar(MEAN_EPSILON))


def _pool_mean(hidden: Any, mask: Any, _: Any) -> Any:
    return op.divide(*_sum_states(hidden, mask))


def _pool_mean_sqrt(hidden: Any, mask: Any, _: Any) -> Any:
    total, count = _sum_states(hidden, mask)
    return op.divide(total, op.sqrt(count))


def _pool_weighted(hidden: Any, mask: Any, positions: Any) -> Any:
    """Weight each token by its position in the text, which counts from 1 and includes the prompt."""
    return op.divide(*_sum_states(hidden, op.multiply(positions, mask)))


#: Functions of the hidden states, the mask of the tokens to pool, and the positions of all tokens, which count from 1.
_POOL: dict[str, Callable[[Any, Any, Any], Any]] = {
    "cls": _pool_first,
    "max": _pool_max,
    "mean": _pool_mean,
    "mean_sqrt_len_tokens": _pool_mean_sqrt,
    "weightedmean": _pool_weighted,
    "lasttoken": _pool_last,
}
