# ruff: noqa: E501
"""Bugs that `scripts/mutants` plants in the conversion of models. Nearly all give vectors that are silently wrong."""

from typing import NamedTuple


class ModelBug(NamedTuple):
    """Replacement of one text in one file of `workers/models` by a wrong one; the name describes the effect."""

    name: str
    file: str
    right: str
    wrong: str
    #: Arguments of pytest: the file in `tests/unit/workers` without `test_` and `.py`, and a part of the tests' names.
    tests: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of pytest."""
        file, *names = self.tests.split(maxsplit=1)
        return (f"tests/unit/workers/test_{file}.py", *(("-k", names[0]) if names else ()))


MODEL_BUGS = [
    # Masks.
    ModelBug("excluded keys have the score -infinity", "layout.py", "LOWEST = float(np.finfo(np.float32).min)", 'LOWEST = float("-inf")', "golden_families qwen3"),
    ModelBug("sums of biases become -infinity", "layout.py", "total = op.maximum(op.add(total, bias), make_scalar(LOWEST))", "total = op.add(total, bias)", "attention_biases"),
    ModelBug("padding is attended to", "layout.py", "return add_biases(op.unsqueeze(bias, make_integers(0, 1)), self.make_key_bias())", "return op.unsqueeze(bias, make_integers(0, 1))", "golden_families"),
    ModelBug("the window is too small by one", "layout.py", "op.greater(op.abs(self.get_distances()), make_integer(radius))", "op.greater_equal(op.abs(self.get_distances()), make_integer(radius))", "golden_families modernbert"),
    ModelBug("the causal window is too large by one", "layout.py", "op.less_equal(distances, make_integer(-window))", "op.less(distances, make_integer(-window))", "golden_families mistral"),
    ModelBug("the causal mask looks the wrong way", "layout.py", "excluded = op.greater(distances, make_integer(0))", "excluded = op.less(distances, make_integer(0))", "golden_families qwen2"),
    # Blocks.
    ModelBug("gelu is the approximation with tanh", "blocks.py", '"gelu": lambda x: op.gelu(x, "erf")', '"gelu": lambda x: op.gelu(x, "tanh")', "golden_families modernbert"),
    ModelBug("heads of keys repeat in turn", "blocks.py", "copies = op.broadcast(op.unsqueeze(x, make_integers(2)), make_integers(1, 1, count, 1, 1)", "copies = op.broadcast(op.unsqueeze(x, make_integers(1)), make_integers(1, count, 1, 1, 1)", "golden_families mistral"),
    ModelBug("rotary pairs turn the wrong way", "blocks.py", "turned = op.concat([op.multiply(second, make_scalar(-1)), first], -1)", "turned = op.concat([second, op.multiply(first, make_scalar(-1))], -1)", "golden_families qwen2"),
    ModelBug("rotary positions are not fused", "blocks.py", "op.variadic_split(x, make_integer(3),", "op.variadic_split(x, make_integer(-1),", "golden_families fused"),
    ModelBug("RMS norms miss their epsilon", "blocks.py", "op.sqrt(op.add(mean, make_scalar(epsilon)))", "op.sqrt(op.add(mean, make_scalar(1e-2)))", "golden_families qwen2"),
    # Rotary frequencies.
    ModelBug("the NTK scaling of GTE is left out", "family_settings.py", '"ntk": _scale_base,', '"ntk": _use_base,', "family_settings"),
    ModelBug("the NTK scaling changes only the base", "family_settings.py", "return (base * factor) ** -exponents / factor ** (1 / len(exponents))", "return (base * factor) ** -exponents", "family_settings"),
    ModelBug("the old spelling scales again", "family_settings.py", "    if values is None:\n", "    if values is None or config.get('rope_scaling'):\n", "family_settings"),
    ModelBug("local frequencies are scaled", "family_settings.py", 'values = _read_dict(path, config, "rope_scaling") if is_scaled else {}', 'values = _read_dict(path, config, "rope_scaling")', "family_settings"),
    ModelBug("an unknown scaling counts as none", "family_settings.py", "    if not isinstance(kind, str) or kind not in _SCALINGS:\n", '    kind = kind if kind in _SCALINGS else "default"\n    if False:\n', "family_settings"),
    ModelBug("Llama's scaling is linear", "family_settings.py", "kept = np.clip((waves - low) / (high - low), 0, 1)", "kept = 0 * waves", "golden_families llama"),
    ModelBug("partial rotary embeddings are taken for whole ones", "family_settings.py", 'if read_number(path, source, "partial_rotary_factor", 0, 1, 1, whole=False) != 1:', "if False:", "family_settings"),
    # Decoders.
    ModelBug("every decoder is causal", "decoder.py", 'return read_flag(path, config, "is_causal", True)', "return True", "golden_families qwen3"),
    ModelBug("use_bidirectional_attention is ignored", "decoder.py", 'if read_flag(path, config, "use_bidirectional_attention"):', "if False:", "golden_families gemma3"),
    ModelBug("EuroBERT is causal", "decoder.py", '    if family == "eurobert":\n        return False\n', "", "golden_families eurobert"),
    ModelBug("remote code is guessed to be causal", "decoder.py", "if classes and is_causal is None and is_bidirectional is None:", "if False:", "decoder"),
    ModelBug("Gemma3's norms do not add 1", "decoder.py", "return 1 if self.is_gemma else 0", "return 0", "golden_families gemma3"),
    ModelBug("Gemma3's embeddings are not scaled", "decoder.py", "hidden = op.multiply(hidden, make_scalar(math.sqrt(shape.hidden)))", "pass", "golden_families gemma3"),
    ModelBug("Gemma3's window is on each side", "decoder.py", "return window // 2", "return window", "golden_families gemma3"),
    ModelBug("Gemma3's half window excludes its end", "decoder.py", "return window // 2", "return window // 2 - 1", "golden_families gemma3"),
    ModelBug("Gemma3's layers have one rotary base", "decoder.py", 'theta_key="rope_local_base_freq"', 'theta_key="rope_theta"', "golden_families gemma3"),
    ModelBug("Gemma3's scores are scaled by the head size", "decoder.py", "whole=False) if is_gemma else size", "whole=False) * 0 + size", "golden_families gemma3"),
    ModelBug("Gemma3's full layers come first", "decoder.py", "SLIDING if (number + 1) % period else FULL", "SLIDING if number % period else FULL", "golden_families gemma3"),
    ModelBug("heads of queries and keys have no norm", "decoder.py", 'has_head_norms=family in ("qwen3", "gemma3_text")', "has_head_norms=False", "golden_families qwen3"),
    ModelBug("head_dim is ignored", "decoder.py", 'size = read_count(path, config, "head_dim", default=_HEAD_SIZES.get(family, max(1, hidden // heads)))', "size = max(1, hidden // heads)", "golden_families qwen3"),
    ModelBug("Qwen2 has no biases", "decoder.py", 'query_bias=attention_bias or family == "qwen2"', "query_bias=attention_bias", "golden_families qwen2"),
    ModelBug("Mistral has no window", "decoder.py", 'has_window = family == "mistral" and', "has_window = False and", "golden_families mistral"),
    ModelBug("windows of Qwen2 begin in the first layer", "decoder.py", "SLIDING if number >= first else FULL", "SLIDING", "decoder spellings"),
    ModelBug("gate and multiplier are swapped", "decoder.py", 'gate = self.shape.activate(self._linear(x, "mlp.gate_proj"', 'gate = (lambda x: x)(self._linear(x, "mlp.gate_proj"', "golden_families qwen2"),
    # ModernBERT.
    ModelBug("ModernBERT's half window is a whole one", "modernbert.py", 'default=128) // 2', "default=128)", "golden_families modernbert"),
    ModelBug("ModernBERT's gate is the second half", "modernbert.py", "op.multiply(shape.activate(gate), up)", "op.multiply(gate, shape.activate(up))", "golden_families modernbert"),
    ModelBug("ModernBERT's first layer has a norm", "modernbert.py", 'shape) if number else hidden', "shape)", "golden_families modernbert"),
    ModelBug("ModernBERT has one rotary base", "modernbert.py", 'SLIDING: ("local_rope_theta"', 'SLIDING: ("global_rope_theta"', "golden_families modernbert"),
    ModelBug("ModernBERT's full layers come last", "modernbert.py", "SLIDING if number % period else FULL", "SLIDING if (number + 1) % period else FULL", "golden_families modernbert"),
]  # fmt: skip
