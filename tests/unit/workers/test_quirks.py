"""What gives silently wrong vectors in other servers, and the tests that would fail here.

The numbers are those of the list that issue 11 refers to. Most rows also have planted bugs in `scripts/model_bugs.py`.
"""

import importlib
from pathlib import Path

import pytest

from workers.models.folder import read_folder
from workers.models.json_files import ModelError

#: By number: what is easily missed, and tests as `file::function` in this folder.
QUIRKS = {
    1: (
        "positions of RoBERTa and MPNet start behind the padding token, so fewer tokens fit than there are rows",
        "golden_families::test_states_equal_those_of_transformers",
        "modules::test_positions_that_no_token_has_do_not_count",
    ),
    2: (
        "Dense modules",
        "golden_sentences::test_vectors_equal_those_of_sentence_transformers",
        "head::test_dense_applies_its_activation",
        "modules::test_dense_without_a_known_activation_is_tanh",
    ),
    3: (
        "the last token of Qwen3-Embedding is the padding token",
        "golden_sentences::test_vectors_equal_those_of_sentence_transformers",
    ),
    4: (
        "truncation keeps the special tokens at the end",
        "tokenizer::test_truncation_keeps_special_tokens_on_one_side",
        "library_encoder::test_truncation_keeps_the_end_token",
        "golden_sentences::test_a_text_is_longer_than_the_model_accepts",
    ),
    5: (
        "LAST with padding on either side",
        "head::test_pooling_uses_attended_tokens",
        "golden_families::test_left_padding_gives_the_same_states",
    ),
    6: (
        "rows that are masked entirely",
        "attention_biases::test_excluded_keys_have_the_lowest_bias",
        "golden_families::test_states_equal_those_of_transformers",
    ),
    7: (
        "bidirectional decoders",
        "golden_families::test_only_bidirectional_models_see_later_tokens",
        "decoder::test_unsupported_settings_are_named",
        "decoder::test_extra_layers_of_remote_code_are_refused",
    ),
    8: ("gelu is exact", "bert_import::test_activations_match_the_equations"),
    9: ("which half is the gate", "golden_families::test_states_equal_those_of_transformers"),
    10: (
        "Gemma3: 1 + w, scaled embeddings, half window, two rotary bases",
        "golden_families::test_states_equal_those_of_transformers",
        "decoder::test_spellings_with_the_same_states",
    ),
    11: (
        "activations of Gemma3 overflow float16",
        "inference_precision::test_models_are_compiled_for_float32",
        "inference_precision::test_overflowing_model_is_not_run_in_float16",
    ),
    12: (
        "NTK scaling of GTE is applied once",
        "family_settings::test_frequencies_of_both_spellings",
        "golden_families::test_states_equal_those_of_transformers",
    ),
    13: (
        "ModernBERT: first layer without norm, null as padding token, half window",
        "golden_families::test_states_equal_those_of_transformers",
    ),
    14: (
        "the tokenizer is that of tokenizer.json, whatever the model_type",
        "tokenizer::test_other_rules_than_berts_run_in_the_library",
        "tokenizer_settings::test_ids_equal_those_of_the_library",
    ),
    15: (
        "tokenizer_config.json overrides tokenizer.json",
        "tokenizer_settings::test_settings_choose_the_end_tokens",
        "tokenizer_settings::test_settings_of_bert_apply_as_in_transformers",
        "modules::test_settings_of_old_file_names_are_read",
    ),
    16: ("token types are 0 for texts and for token ids", "imported::test_token_types_are_zero"),
    17: (
        "pooling without a declaration",
        "modules::test_pooling_without_modules_depends_on_the_class",
        "imported_folders::test_unset_pooling_of_a_graph_is_ovms_own",
        "imported_folders::test_contradicting_pooling_is_reported",
    ),
    18: ("quantized graphs are served only if named", "graph_files::test_graph_is_chosen_by_its_name"),
    19: (
        "prompts, and whether they are pooled",
        "golden_sentences::test_vectors_equal_those_of_sentence_transformers",
        "head::test_pooling_leaves_out_the_prompt",
    ),
    20: (
        "LayerNorm comes before truncate_dim",
        "head::test_modules_apply_in_their_order",
        "head::test_truncation_follows_normalization",
    ),
    21: ("a jina-bert is no BERT", "encoder::test_unsupported_settings_are_named"),
    22: (
        "devices choose bfloat16 or float16, and round activations",
        "inference_precision::test_models_are_compiled_for_float32",
        "inference_precision::test_rounding_of_activations_does_not_depend_on_openvino",
    ),
    23: (
        "weights in several files, names with prefixes",
        "weights::test_shards_hold_the_same_tensors",
        "weights::test_prefix_of_all_tensors_is_found",
    ),
    24: (
        "model2vec and sentence-transformers differ in static models",
        "static::test_model2vec_drops_unknown_tokens",
        "static::test_model2vec_applies_factors_and_mapping",
        "static::test_sentence_transformers_keeps_unknown_tokens",
    ),
    25: ("GGUF files without special tokens", "quirks::test_gguf_is_refused_by_name"),
}


def test_every_quirk_has_tests() -> None:
    assert sorted(QUIRKS) == list(range(1, 26))
    for _, *tests in QUIRKS.values():
        assert tests
        for test in tests:
            file, function = test.split("::")
            assert hasattr(importlib.import_module(f"tests.unit.workers.test_{file}"), function), test


@pytest.mark.parametrize("name", ["model-Q4_0.gguf", ""])
def test_gguf_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "model-Q4_0.gguf").touch()
    with pytest.raises(ModelError, match=r"model-Q4_0\.gguf is a GGUF file"):
        read_folder(tmp_path / name)
