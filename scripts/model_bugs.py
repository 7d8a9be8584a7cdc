# ruff: noqa: E501
"""Bugs that `scripts/mutants` plants in the conversion of models. Nearly all give vectors that are silently wrong."""

from typing import NamedTuple


class ModelBug(NamedTuple):
    """Replacement of one text in one file of `workers` by a wrong one; the name describes the effect."""

    name: str
    file: str
    right: str
    wrong: str
    #: Arguments of pytest: the file in `tests/unit/workers` without `test_` and `.py`, and a part of the tests' names.
    tests: str

    @property
    def path(self) -> str:
        """Path of the file from the repository's root; a bare name is in `workers/models`."""
        return f"workers/{self.file}" if "/" in self.file else f"workers/models/{self.file}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of pytest."""
        file, *names = self.tests.split(maxsplit=1)
        return (f"tests/unit/workers/test_{file}.py", *(("-k", names[0]) if names else ()))


MODEL_BUGS = [
    # Imported graphs, and OVMS's configuration.
    ModelBug("token types of a graph are 1", "imported.py", "op.multiply(ids, make_integer(0))", "op.add(op.multiply(ids, make_integer(0)), make_integer(1))", "imported token_types"),
    ModelBug("position ids of a graph begin at 1", "imported.py", "op.maximum(op.subtract(counted, make_integers(1)), make_integers(0))", "counted", "imported position_ids"),
    ModelBug("a graph's own pooling counts", "imported.py", "if _SENTENCE in named and not repool:", "if _SENTENCE in named:", "imported configured_pooling"),
    ModelBug("sentence_embedding is pooled again", "imported.py", "if _SENTENCE in named and not repool:", "if False:", "imported as_it_is"),
    ModelBug("the first output is taken", "imported.py", "        if name in named:\n", "        if False:\n", "imported chosen_by_name"),
    ModelBug("a text generator is served", "imported.py", 'name == "beam_idx" or name.startswith("past_key")', "False", "imported text_generator"),
    ModelBug("a graph with a state is served", "imported.py", "if graph.get_sinks() or any(", "if any(", "imported with_a_state"),
    ModelBug("weights of a graph that are NaN are served", "imported.py", "return not np.isnan(constant.data).any()", "return True", "imported not_numbers"),
    ModelBug("a quantized file is chosen by itself", "graph_files.py", "if not _has_part(path, _REDUCED_PARTS)]", "if True]", "graph_files unclear"),
    ModelBug("weights of ONNX are read from anywhere", "onnx_files.py", 'if inside.is_absolute() or ".." in inside.parts or', "if", "graph_files outside"),
    ModelBug("OVMS's pooling by default is the mean", "ovms_config.py", 'overrides = msgspec.structs.replace(overrides, pooling="CLS")', "pass", "imported_folders unset_pooling"),
    ModelBug("models_path leads anywhere", "ovms_config.py", "if not path.is_relative_to(root) and not path.is_relative_to(start.resolve()):", "if False:", "ovms_config models_path"),
    ModelBug("the oldest version is served", "ovms_config.py", "return versions[max(versions)] if versions else folder", "return versions[min(versions)] if versions else folder", "ovms_config version"),
    ModelBug("the limit of a tokenizer IR stays", "tokenizers.py", "node.input(3).replace_source_output(op.constant(np.int32(2**31 - 1))", "node.input(3).replace_source_output(op.constant(np.int32(4))", "imported_folders of_the_library"),
    # Masks.
    ModelBug("excluded keys have the score -infinity", "layout.py", "LOWEST = -30000.0", 'LOWEST = float("-inf")', "golden_families qwen3"),
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
    ModelBug("EuroBERT is causal", "decoder.py", '        return False\n    is_causal, is_bidirectional', "    is_causal, is_bidirectional", "golden_families eurobert"),
    ModelBug("remote code is guessed to be causal", "decoder.py", "if classes and is_causal is None and is_bidirectional is None:", "if False:", "decoder"),
    ModelBug("Gemma3's norms do not add 1", "decoder.py", "return 1 if self.is_gemma else 0", "return 0", "golden_families gemma3"),
    ModelBug("Gemma3's embeddings are not scaled", "decoder.py", "hidden = op.multiply(hidden, make_scalar(math.sqrt(shape.hidden)))", "pass", "golden_families gemma3"),
    ModelBug("Gemma3's window is on each side", "decoder.py", "return window // 2", "return window", "golden_families gemma3"),
    ModelBug("Gemma3's half window excludes its end", "decoder.py", "return window // 2", "return window // 2 - 1", "golden_families gemma3"),
    ModelBug("Gemma3's layers have one rotary base", "decoder.py", 'theta_key="rope_local_base_freq"', 'theta_key="rope_theta"', "golden_families gemma3"),
    ModelBug("Gemma3's scores are scaled by the head size", "decoder.py", "whole=False) if is_gemma else size", "whole=False) * 0 + size", "golden_families gemma3"),
    ModelBug("Gemma3's full layers come first", "decoder.py", "SLIDING if (number + 1) % period else FULL", "SLIDING if number % period else FULL", "decoder spellings"),
    ModelBug("heads of queries and keys have no norm", "decoder.py", 'has_head_norms=family in ("qwen3", "gemma3_text")', "has_head_norms=False", "golden_families qwen3"),
    ModelBug("head_dim is ignored", "decoder.py", 'size = read_count(path, config, "head_dim", default=_HEAD_SIZES.get(family, max(1, hidden // heads)))', "size = max(1, hidden // heads)", "golden_families qwen3"),
    ModelBug("Qwen2 has no biases", "decoder.py", 'query_bias=attention_bias or family == "qwen2"', "query_bias=attention_bias", "golden_families qwen2"),
    ModelBug("Mistral has no window", "decoder.py", 'has_window = family == "mistral" and', "has_window = False and", "golden_families mistral"),
    ModelBug("windows of Qwen2 begin in the first layer", "decoder.py", "SLIDING if number >= first else FULL", "SLIDING", "decoder spellings"),
    ModelBug("gate and multiplier are swapped", "decoder.py", 'gate = self.shape.activate(self._linear(x, "mlp.gate_proj"', 'gate = (lambda x: x)(self._linear(x, "mlp.gate_proj"', "golden_families qwen2"),
    ModelBug("layers of remote code are left out", "decoder.py", "    if _list_code(folder.config):\n", "    if False:\n", "decoder extra_layers"),
    ModelBug("EuroBERT's code may be anyone's", "decoder.py", '        refuse_code(path, config, ("EuroBert",))\n', "", "decoder"),
    # Encoders.
    ModelBug("RoBERTa's positions start at 0", "encoder_specs.py", "token_types=token_types, first_position=first)", "token_types=token_types, first_position=0)", "golden_families roberta"),
    ModelBug("RoBERTa's positions start at the padding token", "encoder_specs.py", 'return read_count(path, config, "pad_token_id", 0, default=1) + 1', 'return read_count(path, config, "pad_token_id", 0, default=1)', "golden_families roberta"),
    ModelBug("MPNet's distances have the wrong sign", "encoder.py", "rows + half * (distances > 0)", "rows + half * (distances < 0)", "golden_families mpnet"),
    ModelBug("GTE's gate is the first half", "encoder_specs.py", 'up=Linear("mlp.up_gate_proj", bias=False, part=(0, 2)),\n        gate=Linear("mlp.up_gate_proj", bias=False, part=(1, 2))', 'up=Linear("mlp.up_gate_proj", bias=False, part=(1, 2)),\n        gate=Linear("mlp.up_gate_proj", bias=False, part=(0, 2))', "golden_families gte"),
    ModelBug("every layer has experts", "encoder.py", "number % spec.experts.every == 1", "number % spec.experts.every == 0", "golden_families moe"),
    ModelBug("the second matrix of experts is transposed", "encoder.py", "op.add(op.matmul(inner, contract, False, False), bias)", "op.add(op.matmul(inner, op.reshape(contract, make_integers(spec.hidden, -1), False), False, True), bias)", "golden_families moe"),
    ModelBug("ALiBi counts as learned positions", "encoder_specs.py", '    _refuse(path, config, "position_embedding_type", "absolute")\n', "", "encoder"),
    ModelBug("logarithmic attention scaling is left out", "encoder_specs.py", '    _refuse(path, config, "logn_attention_scale", False)\n', "", "encoder"),
    # ModernBERT.
    ModelBug("ModernBERT's half window is a whole one", "modernbert.py", 'default=128) // 2', "default=128)", "golden_families modernbert"),
    ModelBug("ModernBERT's gate is the second half", "modernbert.py", "op.multiply(shape.activate(gate), up)", "op.multiply(gate, shape.activate(up))", "golden_families modernbert"),
    ModelBug("ModernBERT's first layer has a norm", "modernbert.py", 'shape) if number else hidden', "shape)", "golden_families modernbert"),
    ModelBug("ModernBERT has one rotary base", "modernbert.py", 'SLIDING: ("local_rope_theta"', 'SLIDING: ("global_rope_theta"', "golden_families modernbert"),
    ModelBug("ModernBERT's full layers come last", "modernbert.py", "SLIDING if number % period else FULL", "SLIDING if (number + 1) % period else FULL", "golden_families modernbert"),
    ModelBug("GGUF files are not named", "folder.py", "        contents.refuse_gguf(base)\n", "", "quirks gguf"),
    # Engine.
    ModelBug("tokens equal to the padding are masked", "engine/feeds.py", '"attention_mask": mask.astype(np.int64)}', '"attention_mask": (padded != pad_id).astype(np.int64)}', "feeds"),
    ModelBug("texts are padded on the left", "engine/feeds.py", "_round_up(longest) if round_lengths else longest) < lengths", "_round_up(longest) if round_lengths else longest)[::-1] < lengths", "feeds"),
    ModelBug("packed tokens have their places in the batch", "engine/feeds.py", "_extend(origins % mask.shape[1], size)", "_extend(np.arange(count), size)", "feeds"),
    ModelBug("packed texts have RoBERTa's positions of the batch", "packed_layout.py", "rectangle = op.cum_sum(op.gather(counted, self._places, make_integer(0)), make_integer(1))", "rectangle = op.cum_sum(op.gather(counted, self._places, make_integer(0)), make_integer(0))", "golden_families roberta"),
    ModelBug("truncation cuts the special tokens", "engine/batch_inputs.py", "tail = after if ids[len(ids) - len(after) :].tolist() == after.tolist() else after[:0]", "tail = after[:0]", "golden_sentences qwen3"),
    ModelBug("devices choose their precision", "engine/device.py", ', "INFERENCE_PRECISION_HINT": precision}', "}", "inference_precision"),
    ModelBug("an NPU is asked for float32", "engine/device.py", 'precision = "f16" if is_npu(device) else "f32"', 'precision = "f32"', "inference_precision only_npu"),
    ModelBug("Gemma3 runs in float16", "engine/device.py", "    if prepared.needs_float32:\n", "    if False:\n", "inference_precision overflowing"),
    ModelBug("vectors of an NPU have the revision of a CPU", "source.py", 'precision = {"INFERENCE_PRECISION_HINT": "f16"} if is_npu(self.device) else {}', "precision: dict[str, Any] = {}", "inference_precision revision"),
    ModelBug("fixed shapes attend to padding", "engine/fixed_shapes.py", 'self._pad_id if name == "input_ids" else 0', "self._pad_id if name == 'input_ids' else 1", "fixed_shapes same_vectors"),
    # Precision.
    ModelBug("the native float is not probed", "engine/precision.py", 'must_probe=native != "f32" and wanted == "auto"', "must_probe=False", "engine_precision fits_the_device"),
    ModelBug("a failed probe is ignored", "engine/precision.py", "            if cosine >= LEAST_COSINE:", "            if True:", "engine_precision failed_probe"),
    ModelBug("a native float that cannot be compared is used", "engine/precision.py", 'exact = load("f32")', "exact = load(native)", "engine_precision probe_that_fails"),
    ModelBug("modes round activations in other groups", "engine/device.py", '("CPU", "GPU", "AUTO", "HETERO")', '("CPU", "GPU")', "engine_precision only_an_npu"),
    ModelBug("vectors that are not finite pass the probe", "engine/precision.py", "np.nan_to_num(cosines, nan=-1, posinf=-1, neginf=-1)", "np.nan_to_num(cosines, nan=1, posinf=1, neginf=1)", "engine_precision least_cosine"),
    ModelBug("all models share the result of a probe", "engine/precision.py", 'f"{prepared.revision} {choice.float_type}', 'f"{choice.float_type}', "engine_precision another_model"),
    ModelBug("auto takes float16 where it overflows", "engine/precision.py", ' or (needs_float32 and "f16" in natives)', "", "engine_precision overflowing"),
    ModelBug("a device emulates floats that it lacks", "engine/precision.py", "if any(wanted not in device_floats.supported for device_floats in floats):", "if False:", "engine_precision refused"),
    ModelBug("results of probes are never removed", "engine/verdicts.py", "list(results.items())[-MAX_RESULTS:]", "list(results.items())", "engine_precision bounded"),
    ModelBug("int8 has the revision of floats", "prepare.py", "        settings.append((overrides.precision, INT8_GROUP))\n", "        pass\n", "engine_precision own_revision"),
    ModelBug("precisions share a revision although mixes are forbidden", "./loading.py", "prepared.revision if config.mix_floats else", "prepared.revision if True else", "worker_start forbidden"),
    # Pooling and modules.
    ModelBug("CLS is the first position, not the first token", "head.py", "return _pick(hidden, _find_first(mask))", "return _pick(hidden, op.multiply(_find_first(mask), make_integer(0)))", "head pooling_uses"),
    ModelBug("LAST is the last position, not the last token", "head.py", "places = op.multiply(op.convert(mask, \"i64\"), op.unsqueeze(_get_positions(mask), make_integers(0)))", "places = op.add(op.multiply(op.convert(mask, \"i64\"), make_integer(0)), op.unsqueeze(_get_positions(mask), make_integers(0)))", "head pooling_uses"),
    ModelBug("the maximum includes padding", "head.py", "op.select(is_token, hidden, make_scalar(LOWEST))", "hidden", "head pooling_uses"),
    ModelBug("mean_sqrt_len_tokens is the mean", "head.py", "return op.divide(total, op.sqrt(count))", "return op.divide(total, count)", "head pooling_uses"),
    ModelBug("weightedmean is the mean", "head.py", "_sum_states(hidden, op.multiply(positions, mask))", "_sum_states(hidden, mask)", "head pooling_uses"),
    ModelBug("only the first pooling mode counts", "head.py", "for mode in modes]", "for mode in modes[:1]]", "head concatenated"),
    ModelBug("prompts are pooled", "head.py", "mask = op.multiply(mask, op.convert(op.greater(positions, prompt), \"f32\"))", "pass", "head leaves_out"),
    ModelBug("one token of a prompt is pooled", "head.py", "op.greater(positions, prompt)", "op.greater_equal(positions, prompt)", "head leaves_out"),
    ModelBug("Dense modules are left out", "head.py", "            value = _apply_dense(value, step)\n", "            pass\n", "head dense"),
    ModelBug("Dense modules have no residual", "head.py", "    if not dense.is_residual:\n", "    if True:\n", "head residual"),
    ModelBug("LayerNorm modules are left out", "head.py", "            value = _apply_layer_norm(value, step)\n", "            pass\n", "head order"),
    ModelBug("truncate_dim is ignored", "head.py", "    if modules.truncate_dim is not None:\n", "    if False:\n", "head truncation"),
    ModelBug("a Dense module without an activation is linear", "modules.py", 'config.get("activation_function", "torch.nn.Tanh")', 'config.get("activation_function", "torch.nn.Identity")', "modules known_activation"),
    ModelBug("an unknown activation is the identity", "modules.py", '        return "Tanh"\n', '        return "Identity"\n', "modules known_activation"),
    ModelBug("include_prompt is ignored", "modules.py", 'read_flag(path, config, "include_prompt", True)', "True", "model_folder excluded"),
    ModelBug("code counts as a module of its name", "modules.py", "    if not kind.startswith(_PACKAGE):\n", "    if False:\n", "modules unsupported"),
    ModelBug("a causal model without modules is pooled by its mean", "folder.py", 'Pooling(("lasttoken",) if is_causal else ("mean",))', 'Pooling(("mean",))', "modules depends_on_the_class"),
    ModelBug("is_causal does not change the pooling", "folder.py", ' and read_flag(path, config, "is_causal", True)', "", "modules depends_on_the_class"),
    ModelBug("rerankers are served", "folder.py", '    if kind != "SentenceTransformer":\n', "    if False:\n", "modules unsupported"),
    ModelBug("RoBERTa uses positions that no token has", "transformer.py", "    return rows - offset", "    return rows", "modules positions"),
    ModelBug("MPNet's positions begin at 0", "transformer.py", "        offset = 2\n", "        offset = 0\n", "modules positions"),
    ModelBug("NomicBERT runs beyond its training", "transformer.py", "        rows = min(length for length in (rows, trained, _NO_LIMIT) if length is not None)\n", "        pass\n", "modules positions"),
    ModelBug("do_lower_case is ignored", "transformer.py", 'read_flag(path, values, "do_lower_case", False)', "False", "modules old_file_names"),
    ModelBug("chat templates are ignored", "transformer.py", '    if "message" in modalities:\n', "    if False:\n", "modules unsupported_transformer"),
    ModelBug("the newest settings hide the tokenizer's length", "transformer.py", '    if wanted is None and is_present(path):\n', "    if False:\n", "modules newest_save"),
    ModelBug("links out of the folder are followed", "contents.py", "    if not any(target.is_relative_to(parent) for parent in allowed):\n", "    if False:\n", "folder_links"),
    # Static models.
    ModelBug("model2vec's unknown tokens count", "static.py", 'if folder.family == "model2vec" and (', "if False and (", "static model2vec_drops"),
    ModelBug("sentence-transformers drops unknown tokens", "static.py", 'if folder.family == "model2vec" and (', "if True and (", "static keeps"),
    ModelBug("the factors of tokens are left out", "static.py", '    if "weights" in weights:\n', "    if False:\n", "static factors"),
    ModelBug("static models get special tokens", "tokenizer_files.py", "special_tokens = folder.has_special_tokens", "special_tokens = True", "static"),
    # Tokenizers.
    ModelBug("add_eos_token is ignored", "tokenizer_settings.py", "    if flag is True:\n", "    if False:\n", "tokenizer_settings end_tokens"),
    ModelBug("add_bos_token of Qwen removes a token", "tokenizer_settings.py", 'return "" if flag is False and is_removing else None', 'return "" if flag is False else None', "tokenizer_settings end_tokens"),
    ModelBug("an end token replaces both ends", "library.py", "for content, ids in zip(chosen, find_ends(library), strict=True):", "for content, ids in zip(chosen, ([], []), strict=True):", "tokenizer_settings end_tokens"),
    ModelBug("do_lower_case of the tokenizer's settings is ignored", "tokenizer_settings.py", 'spec["normalizer"] = normalizer | fields', "pass", "tokenizer_settings of_bert"),
    ModelBug("generic tokenizers are lower-cased", "tokenizer_settings.py", 'normalizer.get("type") == "BertNormalizer" and not is_generic', 'normalizer.get("type") == "BertNormalizer"', "tokenizer_settings of_bert"),
    ModelBug("special tokens of the settings are words", "library.py", "missing = [content for content in list_special_tokens(settings) if content not in known]", "missing = []", "tokenizer_settings of_bert"),
    ModelBug("add_prefix_space is ignored", "tokenizer_settings.py", 'splitter | {"add_prefix_space": settings["add_prefix_space"]}', "splitter", "tokenizer_settings prefix"),
    ModelBug("the IR gets tokens that it does not find", "tokenizers.py", 'vocabulary.get(token["content"]) == token["id"]', "True", "tokenizer_settings of_bert"),
    ModelBug("texts are not lower-cased", "engine/tokenizer.py", "        if self._lower_case:\n", "        if False:\n", "tokenizer_settings lower_cased"),
    ModelBug("the IR runs all WordPiece tokenizers", "tokenizers.py", 'if types != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or', 'if types[0::2] != ["BertNormalizer", "WordPiece"] or', "tokenizer other_rules"),
    # Encoders.
    ModelBug("padding inside a text has a position", "layout.py", "op.multiply(op.cum_sum(counted, make_integer(1)), counted)", "op.cum_sum(counted, make_integer(1))", "encoder padding"),
    ModelBug("MPNet's far tokens share too few buckets", "encoder.py", "_MAX_DISTANCE = 128", "_MAX_DISTANCE = 64", "golden_families mpnet"),
    ModelBug("token types are left out", "encoder.py", "        if spec.token_types:\n", "        if False:\n", "golden_families transformers and new"),
    ModelBug("token types are 1", "encoder.py", "spec.token_types, spec.hidden)[0]", "spec.token_types, spec.hidden)[-1]", "golden_families transformers and bert"),
    ModelBug("norms before the layers are taken for norms after", "encoder_specs.py", 'for key in ("prenorm", ', "for key in (", "encoder unsupported"),
    ModelBug("gates of encoders are not activated", "encoder.py", "inner = op.multiply(inner, activate(self", "inner = op.multiply(activate(inner), (lambda x: x)(self", "golden_families new"),
    ModelBug("NomicBERT's swiglu is geglu", "encoder_specs.py", '{"swiglu": "silu"', '{"swiglu": "gelu"', "golden_families nomic_bert"),
    ModelBug("NomicBERT's rotary base is the default", "encoder_specs.py", ', "rotary_emb_base")', ")", "golden_families nomic_bert"),
    ModelBug("positions are counted with RoBERTa's padding", "transformer.py", 'offset = read_count(path, config, "pad_token_id", 0, default=1) + 1', "offset = 0", "modules positions"),
    ModelBug("all experts are chosen", "encoder.py", "shares = op.select(op.greater_equal(shares, lowest), shares, make_scalar(0))", "pass", "golden_families moe"),
    ModelBug("shares of experts add up to 1", "encoder.py", "shares = op.select(op.greater_equal(shares, lowest), shares, make_scalar(0))", "shares = op.select(op.greater_equal(shares, lowest), shares, make_scalar(0)); shares = op.divide(shares, op.reduce_sum(shares, make_integers(-1), True))", "golden_families moe"),
    # Files of weights.
    ModelBug("weights that are not finite are served", "weights.py", "if shape is not None and not _is_finite(stored):", "if False:", "weights finite"),
    ModelBug("infinite bfloat16 weights are served", "weights.py", '"BF16": 0x7F80', '"BF16": 0xFFFF', "weights finite"),
    ModelBug("bfloat16 is read as float16", "weights.py", '"BF16": ov.Type.bf16', '"BF16": ov.Type.f16', "weights stored_type"),
    ModelBug("every part of a fused tensor is the first", "weights.py", "values[part[0] * rows : (part[0] + 1) * rows]", "values[:rows]", "golden_families transformers and new"),
    ModelBug("tensors may overlap", "weights.py", "if begin != end or last < begin:", "if last < begin:", "weights header"),
    ModelBug("a header of any length is read", "weights.py", "if length > _MAX_HEADER_BYTES:", "if False:", "weights header"),
    ModelBug("bytes after the last tensor are ignored", "weights.py", "if end != len(content) - 8 - length:", "if end > len(content) - 8 - length:", "weights header"),
    ModelBug("shards are read from anywhere", "weight_files.py", "if Path(name).name != name or ", "if ", "weights outside"),
    ModelBug("tensors of other architectures are ignored", "weights.py", "if part is not None and part[0] in used:", "if False:", "weights unused"),
    ModelBug("a tensor in two shards is the last one", "weights.py", "if twice := sorted(", "if twice := 0 and sorted(", "weights two_shards"),
    ModelBug("MPNet's positions start after the padding token of config.json", "encoder_specs.py", "first_position=_MPNET_START", "first_position=0", "golden_families mpnet"),
    ModelBug("MPNet has no biases for distances", "encoder_specs.py", 'distances=read_count(path, config, "relative_attention_num_buckets", 4, default=32)', "distances=0", "golden_families mpnet"),
    ModelBug("DistilBERT's epsilon is BERT's key", "encoder_specs.py", '**_read_sizes(path, config, keys) | {"epsilon": 1e-12}', '**_read_sizes(path, config, keys) | {"epsilon": 1e-5}', "golden_families distilbert"),
    ModelBug("the epsilon of config.json is ignored", "encoder_specs.py", 'found = read_number(path, config, find_key("layer_norm_eps"), 0, 1, epsilon, whole=False)', "found = 1e-12", "encoder"),
    ModelBug("Nomic's gate is fc11", "encoder_specs.py", 'up=Linear("mlp.fc11" if is_gated else "mlp.fc1", first),\n        gate=Linear("mlp.fc12", first)', 'up=Linear("mlp.fc12" if is_gated else "mlp.fc1", first),\n        gate=Linear("mlp.fc11", first)', "golden_families nomic"),
    ModelBug("Jina's code is run as BERT", "encoder_specs.py", "    refuse_code(path, config)\n    return _read_classic(path, config, token_types=read_count", "    return _read_classic(path, config, token_types=read_count", "encoder"),
    ModelBug("interleaved rotary positions count as halves", "encoder_specs.py", '"parallel_block", "rotary_emb_interleaved", ', '"parallel_block", ', "encoder"),
    ModelBug("NomicBERT takes texts beyond its trained positions", "transformer.py", '    elif family == "nomic_bert":\n', '    elif family == "nomic":\n', "modules positions"),
    # Exports.
    ModelBug("exports pool as OVMS does by default", "export.py", 'pooling = options.pooling or "+".join(declared)', 'pooling = options.pooling or "CLS"', "export pooling_is"),
    ModelBug("a contradicting pooling is exported", "export.py", "if options.pooling and declared != [options.pooling] and not options.force:", "if False:", "export contradicting"),
    ModelBug("a model's code is always trusted", "export.py", '["--trust-remote-code"] if options.trust_remote_code else []', '["--trust-remote-code"]', "export code_of_the_model"),
    ModelBug("an existing export is replaced", "export.py", "        if target.exists() and not options.overwrite:\n", "        if False:\n", "export existing"),
    ModelBug("tables of positions are compressed", "precision.py", '_selects_tokens(_skip_converts(node.input_value(1)))', "True", "precision only_weights"),
    ModelBug("tables of packed positions are compressed", "models/precision.py", 'is_input and node.get_friendly_name() != "positions"', "is_input", "precision packed"),
    ModelBug("pairs of int4 are swapped", "precision.py", "(pairs[:, 0] & 15) | (pairs[:, 1] << 4)", "(pairs[:, 1] & 15) | (pairs[:, 0] << 4)", "precision accuracy"),
    ModelBug("zero points are not subtracted", "precision.py", "    if not symmetric:\n        restored", "    if False:\n        restored", "precision accuracy"),
    ModelBug("scales are shared by all channels", "precision.py", "values.min(axis, keepdims=True), values.max(axis, keepdims=True)", "values.min(keepdims=True), values.max(keepdims=True)", "precision own_scale"),
]  # fmt: skip
