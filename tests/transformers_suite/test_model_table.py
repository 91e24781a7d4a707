"""Our counterpart of each test of transformers' test suite for models.

The names are recorded in methods_of_transformers.txt. Those of `ModelTesterMixin`, `PipelineTesterMixin` and
`ConfigTester` are from tests/test_modeling_common.py, test_pipeline_mixin.py and test_configuration_common.py of the
source distribution of transformers 5.24.0; those of `ExportTesterMixin` (tests/exporters/test_export.py) and of
ImageGPT's own test class (tests/models/imagegpt/test_modeling_imagegpt.py), which it lacks, from the repository of the
same weeks. `GenerationTesterMixin` has a table of its own beside this one.

A value is a test of ours (path below tests/, "::", name) or, without "::", the reason why there is none.
"""

import contextlib
import io
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

# --- Reasons that several methods share ---

ONE_PART = "for models made of several models (vision and text, encoder and decoder): ImageGPT is one"
NO_ROPE = "for rotary positions: ImageGPT learns a vector for each position"
NO_EXPERTS = "for mixtures of experts: ImageGPT's MLP is one"
FLASH = "test_gpu.py::test_agrees_with_float64_on_the_cpu"  # where flash attention is installed
OTHER_FLASH = (
    "other builds of the same function, chosen by transformers by their names; flash_attention_2 stands for all"
)
NO_DEEPSPEED = "DeepSpeed divides weights between GPUs: none here; resizing without it is in model/test_resizing.py"
NO_HUB_KERNELS = "kernels that transformers downloads from its hub for GPUs; ours are compiled here: see `kernels`"
NO_RENAMING = "for models whose weights transformers renames while loading: ImageGPT's have the names of the files"
OTHER_FEATURES = "for models with features of text, sound or moving pictures: ImageGPT has those of its one input"
OTHER_PIPELINE = (
    "for another task: transformers' ImageGPT is in the pipelines of image features and classification only"
)

S = "transformers_suite/"
SAVING, OUTPUTS, TRAINING = S + "test_saving.py::", S + "test_outputs.py::", S + "test_training_by_others.py::"
BACKENDS, EXPORT = S + "test_attention_backends.py::", S + "test_export_and_compile.py::"
CONFIGURATION, PIPELINES = S + "test_configuration.py::", S + "test_image_pipelines.py::"
OFFLOADING, RESIZING = S + "test_offloading.py::", "model/test_resizing.py::"

MODEL_TESTER = {
    "test_all_tensors_are_parameter_or_buffer": SAVING + "test_load_weights_into_meta_model",
    "test_attention_outputs": OUTPUTS + "test_attention_weights",
    "test_attn_implementation_composite_models": ONE_PART,
    "test_base_model_prefix_loads_base_weights": SAVING + "test_base_model_loads_into_head_model",
    "test_batching_equivalence": OUTPUTS + "test_results_do_not_depend_on_the_batch",
    "test_bc_cache_name_forward": "model/test_caches.py::test_cache_argument_has_two_names",
    "test_bc_torch_dtype": SAVING + "test_requested_dtype_by_either_name",
    "test_can_be_initialized_on_meta": SAVING + "test_load_weights_into_meta_model",
    "test_can_capture_specific_layers_hidden_states": OUTPUTS + "test_hidden_states",
    "test_can_init_all_missing_weights": SAVING + "test_missing_weights_are_initialized_like_new_ones",
    "test_can_load_from_already_mapped_keys": NO_RENAMING,
    "test_can_load_ignoring_mismatched_shapes": SAVING + "test_ignore_mismatched_sizes",
    "test_can_load_with_device_context_manager": SAVING + "test_loading_under_a_default_device",
    "test_can_load_with_global_device_set": SAVING + "test_loading_under_a_default_device",
    "test_can_set_attention_dynamically": BACKENDS + "test_ways_to_choose_the_backend",
    "test_can_set_attention_dynamically_composite_model": ONE_PART,
    "test_can_use_safetensors": SAVING + "test_folder_round_trip",
    "test_cannot_load_with_meta_device_context_manager": SAVING + "test_loading_under_a_default_device",
    "test_capture_outputs_decorator": OUTPUTS + "test_outputs_are_captured_once",
    "test_causal_lm_loss_honors_shift_labels": (
        "model/test_pixel_loss.py::test_shift_labels_equal_shifted_labels"
    ),
    "test_config_attn_implementation_setter": BACKENDS + "test_ways_to_choose_the_backend",
    "test_correct_missing_keys": SAVING + "test_base_model_loads_into_head_model",
    "test_cpu_offload": OFFLOADING + "test_offload_after_construction",
    "test_determinism": OUTPUTS + "test_two_calls_give_the_same_bits",
    "test_disk_offload_bin": OFFLOADING + "test_load_with_disk_offload",
    "test_disk_offload_safetensors": OFFLOADING + "test_load_with_disk_offload",
    "test_eager_matches_batched_and_grouped_inference": NO_EXPERTS,
    "test_eager_matches_sdpa_inference": BACKENDS + "test_outputs_are_those_of_eager_attention_in_float64",
    "test_enable_input_require_grads": TRAINING + "test_inputs_that_want_gradients_are_switched_on_and_off",
    "test_enable_input_require_grads_with_gradient_checkpointing": (
        TRAINING + "test_checkpointing_with_frozen_weights_and_inputs_that_want_gradients"
    ),
    "test_encoder_decoder_loss_no_double_shift": ONE_PART,
    "test_feed_forward_chunking": OUTPUTS + "test_the_setting_for_chunked_feed_forward_changes_nothing",
    "test_flash_attn_2_can_compile_with_attention_mask_None_without_graph_break": (
        "model/test_compile_export.py::test_forward_is_one_graph"
    ),
    "test_flash_attn_2_can_dispatch_composite_models": ONE_PART,
    "test_flash_attn_2_fp32_ln": FLASH,
    "test_flash_attn_2_from_config": FLASH,
    "test_flash_attn_2_inference_equivalence": FLASH,
    "test_flash_attn_2_inference_equivalence_right_padding": FLASH,
    "test_flash_attn_3_can_dispatch_composite_models": ONE_PART,
    "test_flash_attn_3_from_config": OTHER_FLASH,
    "test_flash_attn_3_inference_equivalence": OTHER_FLASH,
    "test_flash_attn_3_inference_equivalence_right_padding": OTHER_FLASH,
    "test_flash_attn_4_can_dispatch_composite_models": ONE_PART,
    "test_flash_attn_4_from_config": OTHER_FLASH,
    "test_flash_attn_4_inference_equivalence": OTHER_FLASH,
    "test_flash_attn_4_inference_equivalence_right_padding": OTHER_FLASH,
    "test_flash_attn_kernels_inference_equivalence": NO_HUB_KERNELS,
    "test_flash_attn_kernels_mps_inference_equivalence": NO_HUB_KERNELS,
    "test_flex_attention_with_grads": "test_gpu.py::test_gradients_of_flex_attention",
    "test_format_of_can_record_outputs": OUTPUTS + "test_outputs_are_captured_once",
    "test_from_pretrained_no_checkpoint": SAVING + "test_load_from_state_dict_and_config",
    "test_generation_tester_mixin_inheritance": CONFIGURATION + "test_capability_flags",
    **dict.fromkeys(
        [
            "test_get_audio_features_attentions", "test_get_audio_features_hidden_states",
            "test_get_audio_features_output", "test_get_image_features_attentions",
            "test_get_image_features_hidden_states", "test_get_image_features_output",
            "test_get_image_features_pooler_output", "test_get_text_features_attentions",
            "test_get_text_features_hidden_states", "test_get_text_features_output",
            "test_get_video_features_attentions", "test_get_video_features_hidden_states",
            "test_get_video_features_output", "test_get_video_features_pooler_output",
            "test_multimodal_outputs_are_returned",
        ],
        OTHER_FEATURES,
    ),
    "test_gradient_checkpointing_backward_compatibility": (
        TRAINING + "test_checkpointing_asked_for_by_an_old_configuration"
    ),
    "test_gradient_checkpointing_enable_disable": TRAINING + "test_checkpointing_is_switched_on_and_off_everywhere",
    "test_hidden_states_output": OUTPUTS + "test_hidden_states",
    "test_init_weights_can_init_buffers": SAVING + "test_load_weights_into_meta_model",
    "test_inputs_embeds": OUTPUTS + "test_inputs_embeds_equal_input_ids",
    "test_inputs_embeds_matches_input_ids": OUTPUTS + "test_inputs_embeds_equal_input_ids",
    "test_internal_model_config_and_subconfig_are_same": ONE_PART,
    "test_keep_in_fp32_modules": SAVING + "test_norms_are_float32_in_every_half_precision_model",
    "test_keep_in_fp32_modules_exist": SAVING + "test_norms_are_kept_in_float32_by_modules_that_exist",
    "test_keep_in_fp32_modules_strict_also_hardcode_fp32": (
        SAVING + "test_norms_are_float32_in_every_half_precision_model"
    ),
    "test_kernels_can_load_without_crashing": NO_HUB_KERNELS,
    "test_load_contiguous_weights": SAVING + "test_folder_round_trip",
    "test_load_save_without_tied_weights": SAVING + "test_all_weights_are_written_and_none_is_shared",
    "test_load_with_mismatched_shapes": SAVING + "test_a_head_of_another_shape_is_refused",
    "test_model_base_model_prefix": OUTPUTS + "test_prefix_and_base_model",
    "test_model_forward_default_config_values": OUTPUTS + "test_special_tokens_in_config_have_no_effect",
    "test_model_get_set_embeddings": OUTPUTS + "test_embeddings_can_be_read_and_replaced",
    "test_model_is_small": PIPELINES + "test_models_are_small",
    "test_model_main_input_name": OUTPUTS + "test_signature_and_main_input",
    "test_model_outputs_equivalence": OUTPUTS + "test_tuple_outputs_equal_named_outputs",
    "test_model_parallelism": OFFLOADING + "test_device_map_does_not_split_blocks",
    "test_model_rope_scaling_frequencies": NO_ROPE,
    "test_model_rope_scaling_from_config": NO_ROPE,
    "test_model_rope_with_partial_rotation": NO_ROPE,
    "test_model_weights_reload_no_missing_tied_weights": SAVING + "test_folder_round_trip",
    "test_moe_models_record_router_logits": NO_EXPERTS,
    "test_num_layers_is_small": PIPELINES + "test_models_are_small",
    "test_output_router_logits_from_config": NO_EXPERTS,
    "test_peft_gradient_checkpointing_enable_disable": (
        S + "test_peft_methods.py::test_adapters_with_gradient_checkpointing"
    ),
    "test_problem_types": OUTPUTS + "test_problem_types",
    "test_resize_embeddings_untied": RESIZING + "test_start_token_stays_last",
    "test_resize_embeddings_untied_no_reinit_on_post_init": (
        CONFIGURATION + "test_resized_weights_are_not_reinitialized"
    ),
    "test_resize_embeddings_untied_with_deepspeed": NO_DEEPSPEED,
    "test_resize_embeddings_untied_with_deepspeed_multi_gpu": NO_DEEPSPEED,
    "test_resize_position_vector_embeddings": RESIZING + "test_positions_are_interpolated_as_an_image",
    "test_resize_tokens_embeddings": RESIZING + "test_tokens_are_padded_to_a_multiple",
    "test_resize_tokens_embeddings_with_deepspeed": NO_DEEPSPEED,
    "test_resize_tokens_embeddings_with_deepspeed_multi_gpu": NO_DEEPSPEED,
    "test_retain_grad_hidden_states_attentions": (
        OUTPUTS + "test_retain_grad_of_captured_outputs"
    ),
    "test_reverse_loading_mapping": NO_RENAMING,
    "test_save_load": SAVING + "test_folder_round_trip",
    "test_save_load_keys_to_ignore_on_save": SAVING + "test_all_weights_are_written_and_none_is_shared",
    "test_sdpa_can_compile_dynamic": EXPORT + "test_generated_code_for_dynamic_lengths_with_padding",
    "test_sdpa_can_dispatch_composite_models": ONE_PART,
    "test_sdpa_can_dispatch_non_composite_models": BACKENDS + "test_ways_to_choose_the_backend",
    "test_sdpa_can_dispatch_on_flash": BACKENDS + "test_each_kernel_of_sdpa_on_a_cpu",
    "test_sliding_window_mask": "for attention to a window of recent tokens: a pixel of ImageGPT sees all earlier ones",
    "test_tied_weights_are_sharded_together": CONFIGURATION + "test_each_entry_of_the_tensor_parallel_plan_is_a_module",
    "test_tied_weights_keys": SAVING + "test_all_weights_are_written_and_none_is_shared",
    "test_torch_compile_for_training": EXPORT + "test_training_compiles_to_one_graph",
    "test_torch_save_load": SAVING + "test_state_dict_by_torch_save",
    "test_tp_plan_matches_params": CONFIGURATION + "test_each_entry_of_the_tensor_parallel_plan_is_a_module",
    "test_training": TRAINING + "test_every_weight_has_a_gradient_and_a_step_lowers_the_loss",
    "test_training_gradient_checkpointing": TRAINING + "test_checkpointing_changes_neither_loss_nor_gradients",
    "test_training_gradient_checkpointing_use_reentrant_false": (
        TRAINING + "test_checkpointing_changes_neither_loss_nor_gradients"
    ),
    "test_training_gradient_checkpointing_use_reentrant_true": (
        TRAINING + "test_checkpointing_changes_neither_loss_nor_gradients"
    ),
    "test_vision_axial_rope": NO_ROPE,
}  # fmt: skip

EXPORT_TESTER = {
    "test_executorch_export": "needs executorch; what it starts from, torch.export, is tested",
    "test_onnx_export": EXPORT + "test_onnx_by_transformers",
    "test_openvino_export": "needs openvino; what it starts from, torch.export, is tested",
    "test_precomputed_inputs_match_eager": "for inputs that an exporter computes beforehand: ImageGPT has none",
    "test_torch_export": EXPORT + "test_exported_by_transformers",
}

IMAGEGPT = {
    "test_beam_search_generate_dict_outputs_use_cache": "of `generate`: in the table of the generation tests",
    "test_config": CONFIGURATION + "test_common_fields_are_kept",
    "test_conv1d_weights_respect_initializer_range": (
        PIPELINES + "test_all_projections_and_embeddings_follow_the_initializer_range"
    ),
    "test_forward_signature": OUTPUTS + "test_signature_and_main_input",
    "test_imagegpt_causal_lm": PIPELINES + "test_shapes_with_token_types_and_padding",
    "test_imagegpt_image_classification": PIPELINES + "test_shapes_with_token_types_and_padding",
    "test_imagegpt_model": PIPELINES + "test_shapes_with_token_types_and_padding",
    "test_inference_causal_lm_head": (
        "scores of OpenAI's small model, which only the hub has; model/test_parity.py compares with transformers' own "
        "code on drawn weights"
    ),
    "test_model_from_pretrained": "OpenAI's small model, which only the hub has; folders are in test_saving.py",
    "test_past_key_values_format": "model/test_caches.py::test_cached_logits_equal_uncached",
}

CONFIG_TESTER = {
    "check_config_arguments_init": CONFIGURATION + "test_common_fields_are_kept",
    "check_config_can_be_init_without_params": CONFIGURATION + "test_labels_follow_their_number",
    "create_and_test_config_common_properties": CONFIGURATION + "test_common_names_for_sizes_can_be_read_and_set",
    "create_and_test_config_from_and_save_pretrained": "test_config.py::test_save_and_load_round_trip",
    "create_and_test_config_from_and_save_pretrained_composite": ONE_PART,
    "create_and_test_config_from_and_save_pretrained_subfolder": (
        CONFIGURATION + "test_a_folder_in_a_folder_and_values_that_overrule"
    ),
    "create_and_test_config_from_pretrained_custom_kwargs": (
        CONFIGURATION + "test_a_folder_in_a_folder_and_values_that_overrule"
    ),
    "create_and_test_config_to_json_file": CONFIGURATION + "test_json_as_a_string_and_a_file",
    "create_and_test_config_to_json_string": CONFIGURATION + "test_json_as_a_string_and_a_file",
    "create_and_test_config_with_num_labels": CONFIGURATION + "test_labels_follow_their_number",
}

OTHER_TASKS = [
    "any_to_any", "audio_classification", "automatic_speech_recognition", "depth_estimation",
    "document_question_answering", "feature_extraction", "fill_mask", "image_segmentation", "image_text_to_text",
    "mask_generation", "object_detection", "table_question_answering", "text_classification", "text_generation",
    "text_to_audio", "token_classification", "video_classification", "zero_shot", "zero_shot_audio_classification",
    "zero_shot_image_classification", "zero_shot_object_detection",
]  # fmt: skip
PIPELINE_TESTER = {
    "test_pipeline_image_classification": PIPELINES + "test_image_classification",
    "test_pipeline_image_classification_fp16": PIPELINES + "test_image_classification",
    "test_pipeline_image_feature_extraction": PIPELINES + "test_image_feature_extraction",
    "test_pipeline_image_feature_extraction_fp16": PIPELINES + "test_image_feature_extraction",
    **{f"test_pipeline_{task}{half}": OTHER_PIPELINE for task in OTHER_TASKS for half in ("", "_fp16")},
}

# Requirements of the issue in addition to them.
NAMED_IN_THE_ISSUE = {
    "bitsandbytes and other quantised weights": (
        "bitsandbytes needs a GPU; transformers' quantisers know our projections by their class, `Conv1D`"
    ),
    "head masking": "model/test_attention.py::test_head_mask_matches_reference",
    "head pruning": "model/test_pruning.py::test_pruning_a_head_is_masking_it",
    "peft: adapters of weights": S + "test_peft_methods.py::test_adapters_of_weights",
    "peft: virtual tokens": S + "test_peft_methods.py::test_virtual_tokens_train_save_and_load",
    "resizing of positions": RESIZING + "test_non_square_images_are_an_error",
    "save and load in shards, half precision": SAVING + "test_sharded_half_precision_round_trip",
    "tensor parallelism": "model/test_tensor_parallel.py::test_two_processes_match_one",
    "torch.jit": "transformers 5 tests TorchScript no longer, and torch 2.13 deprecates it: torch.export is tested",
    "Trainer: train, save, resume": TRAINING + "test_trainer_resumes_where_it_stopped",
    "Trainer: evaluate": TRAINING + "test_trainer_evaluates_and_predicts",
    "tying": "test_config.py::test_invalid_values_are_one_sentence_naming_the_field",
}

TABLES = {
    "ModelTesterMixin": MODEL_TESTER,
    "ExportTesterMixin": EXPORT_TESTER,
    "ImageGPTModelTest": IMAGEGPT,
    "ConfigTester": CONFIG_TESTER,
    "PipelineTesterMixin": PIPELINE_TESTER,
    "the issue": NAMED_IN_THE_ISSUE,
}
EVERY_TABLE = pytest.mark.parametrize("name", TABLES)


@pytest.fixture(scope="module")
def collected():
    """All tests in the files listed here, including slow and GPU tests."""
    named = {value.split("::")[0] for table in TABLES.values() for value in table.values() if "::" in value}
    found = set()

    class Keep:
        def pytest_collection_finish(self, session):
            found.update(item.nodeid.split("[")[0] for item in session.items)

    options = ["--collect-only", "-qq", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-s"]
    files = [str(TESTS / file) for file in sorted(named)]
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main([*options, f"--rootdir={TESTS}", *files], plugins=[Keep()])
    assert status == pytest.ExitCode.OK
    return found


def recorded_methods():
    """The recorded test methods, by class name."""
    methods = {}
    for line in (Path(__file__).parent / "methods_of_transformers.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            names = methods.setdefault(line.strip("[]"), set())
        elif line and not line.startswith("#"):
            names.add(line)
    return methods


def test_every_recorded_method_is_in_its_table_and_no_other():
    methods = recorded_methods()
    assert methods.keys() == TABLES.keys() - {"the issue"}
    for name, recorded in methods.items():
        assert TABLES[name].keys() == recorded, name
    assert len(methods["ModelTesterMixin"]) == 124


@EVERY_TABLE
def test_each_test_of_ours_exists(name, collected):
    table = TABLES[name]
    missing = {method: test for method, test in table.items() if "::" in test and test not in collected}
    assert not missing


@EVERY_TABLE
def test_reasons_are_not_empty(name):
    for method, reason in TABLES[name].items():
        assert "::" in reason or len(reason.split()) >= 6, method
