"""Our counterpart of each test of transformers' `GenerationTesterMixin`.

The names are those of the class in tests/generation/test_utils.py of transformers 5, as of its commit
f6e017b369643797a9d27dd4bf12741844db0a01 of 2026, before 5.24 renamed the cache; the file is in no wheel. transformers
skips its own ImageGPT in those marked with a star. Every generative class of ours is `ImageGPTForCausalImageModeling`;
its kinds are in `generating.py`.
"""

import importlib

import pytest

MODES, INPUTS, PLACED = "test_generation_modes", "test_generation_inputs", "test_generation_placed"
FLASH = f"{PLACED}.test_flash_attention_generates_as_eager_attention"
ROW = f"{INPUTS}.test_images_packed_in_a_row_by_their_positions"
PACKED = f"{PLACED}.test_flash_attention_of_images_packed_in_a_row"

COUNTERPARTS = {
    "test_assisted_decoding_matches_greedy_search": [
        f"{MODES}.test_assisted_decoding_gives_the_greedy_image",
        f"{MODES}.test_outputs_of_assisted_decoding",
    ],
    "test_assisted_decoding_sample": [f"{MODES}.test_assisted_sampling_follows_the_models_probabilities"],
    "test_beam_sample_generate": [f"{MODES}.test_sampled_beams_are_those_of_transformers_own_imagegpt"],
    "test_beam_sample_generate_dict_output": [f"{MODES}.test_outputs_of_beams"],
    "test_beam_search_generate": [f"{MODES}.test_beams"],
    "test_beam_search_generate_dict_output": [f"{MODES}.test_outputs_of_beams"],
    "test_beam_search_generate_dict_outputs_use_cache": [f"{MODES}.test_outputs_of_beams"],
    "test_custom_4d_attention_mask": [f"{INPUTS}.test_a_mask_of_four_axes_shares_a_prefix"],
    "test_eager_matches_fa2_generate": [FLASH],
    "test_eager_matches_fa3_generate": [FLASH],
    "test_eager_matches_fa4_generate": [FLASH],
    "test_eager_matches_sdpa_generate": [f"{MODES}.test_greedy"],
    "test_eager_padding_matches_padding_free_with_position_ids": [ROW],
    "test_flash_attention_2_continue_generate_with_position_ids": [FLASH],
    "test_flash_attention_2_padding_matches_padding_free_with_position_ids": [PACKED],
    "test_flash_attention_2_padding_matches_padding_free_with_position_ids_and_fa_kwargs": [PACKED],
    "test_flash_attention_3_padding_matches_padding_free_with_position_ids": [PACKED],
    "test_flash_attention_3_padding_matches_padding_free_with_position_ids_and_fa_kwargs": [PACKED],
    "test_flash_attention_4_padding_matches_padding_free_with_position_ids": [PACKED],
    "test_flash_attention_4_padding_matches_padding_free_with_position_ids_and_fa_kwargs": [PACKED],
    "test_forward_with_logits_to_keep": [f"{INPUTS}.test_logits_to_keep_changes_nothing"],
    "test_generate_compilation_all_outputs": [f"{PLACED}.test_compiled_forward_returns_all_outputs"],
    "test_generate_compile_model_forward_fullgraph": [
        f"{PLACED}.test_one_graph_for_all_steps_of_all_images",
        f"{PLACED}.test_compiled_generation_matches_eager",
    ],
    "test_generate_continue_from_inputs_embeds": [f"{INPUTS}.test_resume_from_embeddings"],  # *
    "test_generate_continue_from_past_key_values": [f"{INPUTS}.test_resume_from_cache"],  # *
    "test_generate_from_inputs_embeds": [f"{INPUTS}.test_embeddings_give_the_image_of_their_ids"],
    "test_generate_from_inputs_embeds_with_static_cache": [f"{INPUTS}.test_embeddings_give_the_image_of_their_ids"],
    "test_generate_from_random_inputs_embeds": [f"{INPUTS}.test_model_reads_embeddings_not_ids"],
    "test_generate_methods_with_logits_to_keep": [f"{INPUTS}.test_logits_to_keep_changes_nothing"],
    "test_generate_with_and_without_position_ids": [f"{INPUTS}.test_positions_can_be_given"],
    "test_generate_with_quant_cache": [
        f"{INPUTS}.test_a_quantised_cache",
        f"{INPUTS}.test_a_quantised_cache_without_its_library_is_one_sentence",
    ],
    "test_generate_with_static_cache": [f"{INPUTS}.test_a_cache_by_its_name"],
    "test_generate_without_input_ids": [f"{MODES}.test_without_a_prompt"],
    "test_greedy_generate": [f"{MODES}.test_greedy"],
    "test_greedy_generate_dict_outputs": [f"{MODES}.test_outputs_without_beams"],
    "test_greedy_generate_dict_outputs_use_cache": [f"{MODES}.test_outputs_without_beams"],
    "test_inherits_generation_mixin": [f"{MODES}.test_only_the_generative_model_generates"],
    "test_left_padding_compatibility": [f"{INPUTS}.test_padding_on_the_left"],
    "test_past_key_values_format": [f"{MODES}.test_outputs_without_beams"],
    "test_prepare_inputs_for_generation_kwargs_forwards": [
        f"{INPUTS}.test_the_inputs_of_a_step_have_the_cache_under_the_name_that_peft_reads"
    ],
    "test_prompt_lookup_decoding_matches_greedy_search": [f"{MODES}.test_prompt_lookup_gives_the_greedy_image"],  # *
    "test_prompt_lookup_decoding_stops_at_eos": [f"{MODES}.test_prompt_lookup_never_proposes_past_the_end_of_an_image"],
    "test_sample_generate": [
        f"{MODES}.test_sampling_draws_from_the_models_probabilities",
        f"{MODES}.test_sampled_images_are_those_of_transformers_own_imagegpt",
    ],
    "test_sample_generate_dict_output": [f"{MODES}.test_outputs_without_beams"],
    "test_sdpa_padding_matches_padding_free_with_position_ids": [ROW],
    # It needs two accelerators, which no machine of ours has; parts in two places have the same hooks.
    "test_model_parallel_beam_search": [f"{PLACED}.test_beams_with_blocks_on_disk"],
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_counterpart_exists(name):
    for counterpart in COUNTERPARTS[name]:
        module, function = counterpart.split(".")
        assert callable(getattr(importlib.import_module(module), function))


def test_table_covers_the_mixin():
    assert len(COUNTERPARTS) == 46
