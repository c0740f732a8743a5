"""Names that TRL, transformers and Lightning have for settings, with ours; the one source of hints and of porting."""

ELSEWHERE = {
    "lr learning_rate": "model.optimizer.lr",
    "optim optimizer": "model.optimizer",
    "optim_args": "model.optimizer",
    "weight_decay": "model.optimizer.weight_decay",
    "adam_beta1 adam_beta2": "model.optimizer.betas",
    "adam_epsilon": "model.optimizer.eps",
    "lr_scheduler lr_scheduler_type scheduler": "model.schedule",
    "lr_scheduler_kwargs": "model.schedule.floor",
    "warmup warmup_ratio warmup_steps": "model.schedule.warmup",
    "beta": "model.objective.beta",
    "gamma simpo_gamma": "model.objective.gamma",
    "alpha": "model.objective.alpha",
    "loss loss_type loss_fn objective": "model.objective",
    "loss_weights": "model.objective.weights",
    "label_smoothing": "model.objective.target",
    "ld_alpha": "model.objective.tokens",
    "f_divergence_type f_alpha_divergence_coef": "model.objective.score",
    "use_weighting": "model.objective.weight",
    "discopop_tau": "model.objective.tau",
    "cpo_alpha rpo_alpha": "model.objective.terms",
    "epochs n_epochs num_epochs num_train_epochs max_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "batch_size train_batch_size gradient_accumulation_steps accumulate_grad_batches": "data.global_batch",
    "per_device_train_batch_size micro_batch_size": "data.micro_batch",
    "eval_batch_size per_device_eval_batch_size": "data.val_batch",
    "max_length max_seq_length max_seq_len": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "dataset dataset_name dataset_path train_dataset train_file data_path train_data data.path data.file "
    "dataset_train_split": "data.train",
    "eval_dataset eval_file val_file validation_file val_dataset dataset_test_split": "data.val",
    "dataloader_num_workers num_workers": "data.workers",
    "seed": "seed_everything",
    "data_seed": "data.seed",
    "full_determinism": "trainer.deterministic",
    "run_name output_dir save_dir default_root_dir log_dir": "run_dir",
    "checkpoint ckpt resume resume_from_checkpoint": "ckpt_path",
    "bf16 fp16 bf16_full_eval fp16_full_eval precision mixed_precision": "trainer.precision",
    "torch_dtype dtype": "model.policy.dtype",
    "attn_implementation": "model.policy.attention",
    "gradient_checkpointing activation_checkpointing": "model.policy.gradient_checkpointing",
    "torch_compile torch_compile_backend": "model.policy.compile",
    "router_aux_loss_coef": "model.policy.router_loss",
    "disable_dropout": "model.policy.dropout",
    "model_init_kwargs": "model.policy",
    "trust_remote_code": "model.policy.trust_remote_code",
    "model_revision": "model.policy.revision",
    "model_name_or_path model_name model_path base_model policy model.path model.name": "model.policy.path",
    "tokenizer tokenizer_name": "model.policy.tokenizer",
    "lora_r lora_rank use_lora use_peft peft_config": "model.policy.lora.r",
    "lora_alpha": "model.policy.lora.alpha",
    "lora_dropout": "model.policy.lora.dropout",
    "lora_target_modules": "model.policy.lora.target_modules",
    "lora_modules_to_save": "model.policy.lora.modules_to_save",
    "ref_model ref_model_name_or_path reference_model references": "model.references",
    "precompute_ref_log_probs": "model.reference_store",
    "padding_free": "model.layout",
    "report_to logger": "trainer.logger",
    "disable_tqdm": "trainer.enable_progress_bar",
    "remove_unused_columns": "data.columns",
    "eval_on_start": "trainer.num_sanity_val_steps",
    "save_steps save_strategy save_total_limit": "trainer.callbacks",
    "generate_during_eval": "trainer.callbacks",
    "eval_steps eval_strategy evaluation_strategy": "trainer.val_check_interval",
    "logging_steps logging_strategy": "trainer.log_every_n_steps",
    "max_grad_norm gradient_clip_val": "trainer.gradient_clip_val",
    "deepspeed fsdp fsdp_config strategy ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_static_graph accelerator_config parallelism_config": "trainer.strategy",
    "devices gpus n_gpus": "trainer.devices",
    "accelerator device use_cpu": "trainer.accelerator",
}
"""Names of TRL, of transformers and of Lightning, with the option of a run that does the same."""

EXPLAINED = {
    "trainer.callbacks": "checkpoints are saved by a callback: --trainer.callbacks+=Checkpoints "
    "--trainer.callbacks.every 50; SampleTexts is one that writes responses after each validation",
    "data.global_batch": "it counts the pairs of an optimizer step over all devices; data.micro_batch bounds those of "
    "a forward pass, and accumulation follows from both",
    "data.micro_batch": "it bounds the pairs of a forward pass; data.global_batch counts those of an optimizer step",
    "trainer.precision": "such as bf16-mixed",
    "model.objective": "such as DPO, MMPO or SFT",
    "model.objective.target": "label smoothing is `target: Smoothed`, CDPO's; TRL's DPO trainer has other "
    "losses, whose smoothing is epsilon of RobustDPO and EXO, and label_smoothing of AOT",
    "model.references": "a list of classes, such as {class_path: Pretrained, init_args: {path: FOLDER}}",
    "trainer.logger": "TensorBoard files are written by default",
    "model.schedule.warmup": "the share of all steps, or a number of them",
    "trainer.val_check_interval": "the share of an epoch, or a number of steps",
    "ckpt_path": "`last` is the newest of the run folder",
    "model.objective.score": "a part: ForwardKL, JensenShannon, AlphaDivergence; the default is the reverse KL",
    "model.objective.terms": "a list of further losses: [{class_path: ChosenNLL, init_args: {coefficient: 1.0}}]",
    "model.policy.dropout": "it is 0 by default, whatever the model's own configuration says",
    "model.policy.router_loss": "null takes the model's own",
    "model.schedule.floor": "the final rate as a share of the peak",
    "model.policy": "path, dtype, attention, revision and trust_remote_code are arguments of its own",
    "data.columns": "data.columns names further columns to keep, and those that an objective reads are kept anyway",
    "trainer.num_sanity_val_steps": "by default all held-out pairs are validated before the first step",
    "trainer.strategy": "a strategy of Lightning, such as ddp, or a class with arguments; configs/fsdp.yaml is FSDP2",
    "model.layout": "no layout but `padded` has padding",
}
"""More about an option for users of another library."""

ADVICE = {
    "center_rewards_coefficient": "it is a term of the objective: terms: [{class_path: Center, init_args: "
    "{coefficient: 0.01}}] under its init_args",
    "margin": "a stronger preference requires a larger difference by offset: {class_path: ColumnOffset, init_args: "
    "{column: margin}} under the init_args of the objective (a constant one by MarginOffset), and MMPO makes "
    "probabilities of margins",
    "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps trdpo tr_dpo": "a reference that follows the policy "
    "(TR-DPO) is model.references: [{class_path: MovingReference, init_args: {alpha: 0.6, every: 512}}]; "
    "see configs/trdpo.yaml",
    "max_completion_length": "data.max_length bounds prompt and response together, data.max_prompt_length the prompt",
    "truncation_mode": "responses are cut from the right, and prompts from the left (data.max_prompt_length)",
    "pad_token padding_value pad_to_multiple_of": "padding is never read, and the prefix-shared layout has none: leave "
    "it out",
    "eos_token chat_template_path": "the tokenizer's own are used: save the model folder with the token or template, "
    "or name another tokenizer (model.policy.tokenizer)",
    "is_encoder_decoder": "only decoders are trained",
    "dataset_num_proc": "preparation takes one process and is stored, so that it is done once: leave it out",
    "precompute_ref_batch_size": "stored scores have batches by a fixed rule, so that they are the same on every "
    "machine: leave it out",
    "activation_offloading": "activations stay on the device: use model.policy.gradient_checkpointing",
    "gradient_checkpointing_kwargs activation_checkpointing_kwargs": "checkpointing has no options: leave it out",
    "torch_compile_mode": "only the backend is chosen (model.policy.compile)",
    "use_liger_kernel liger_kernel_config": "the log-probs are computed in tiles, without the logits of all tokens: "
    "leave it out",
    "load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage": "weights are not "
    "quantised: model.policy.dtype bfloat16 halves them",
    "use_rslora use_dora lora_target_parameters": "adapters are those of plain LoRA (model.policy.lora)",
    "dataset_config": "a hub dataset is read as owner/name:split: name the files of a configuration as data.train",
    "lora_task_type dataset_streaming ignore_bias_buffers": "leave it out",
    "use_cache": "training keeps no keys and values: leave it out",
    "neftune_noise_alpha": "there is no noise on embeddings",
    "torch_empty_cache_steps debug skip_memory_metrics": "leave it out; trainer.profiler measures a run",
    "auto_find_batch_size": "`check` estimates the memory, and data.max_tokens bounds a forward pass",
    "optim_target_modules": "any torch optimizer can be named by its import path: model.optimizer",
    "average_tokens_across_devices": "a step takes the mean over its pairs, whatever devices hold them",
    "label_smoothing_factor": "it smooths tokens; wrong labels of pairs are `target: Smoothed`",
    "tf32": "set torch.set_float32_matmul_precision in a script of your own",
    "logging_first_step": "every log line is the mean since the one before it",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "log_on_each_node log_level log_level_replica": "the first rank speaks for all",
    "include_num_input_tokens_seen": "train/response_tokens_per_second counts them",
    "project trackio_space_id trackio_bucket_id trackio_static_space_id": "trainer.logger takes a logger of Lightning, "
    "such as WandbLogger with its project",
    "eval_delay": "validation begins before the first step",
    "prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
    "batch_eval_metrics label_names": "metrics are exact means over all held-out pairs, and every pair has a record",
    "save_only_model save_on_each_node": "checkpoints can always be resumed; the run folder's hf/ has the model alone",
    "enable_jit_checkpoint": "a run that is killed resumes from its last checkpoint (ckpt_path: last)",
    "load_best_model_at_end metric_for_best_model greater_is_better": "ModelCheckpoint under trainer.callbacks keeps "
    "the best (monitor: val/loss), and `export` makes it a model folder",
    "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision": "nothing is "
    "uploaded: the run folder's hf/ is a model folder, which the client of the hub uploads",
    "ignore_data_skip restore_callback_states_from_checkpoint": "a resumed run continues exactly where it was",
    "dataloader_drop_last": "every pair counts once in an epoch",
    "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
    "dataloader_in_order": "the data module decides it: leave it out",
    "train_sampling_strategy group_by_length length_column_name": "the order is random by data.seed; data.max_tokens "
    "combines pairs of similar lengths",
    "do_train do_eval do_predict": "they are commands: fit, validate, predict",
    "local_rank": "the launcher sets it",
    "reward_model": "a reward model is trained with model.policy.head: scalar; `judge` and `evaluate` use one, as "
    "--model FOLDER",
}
"""What to do instead of a setting that no option of a run stands for; several names of one answer share a line."""

OF_COMMANDS = {
    ("judge", "mapping"): "judge has none: prompts that are messages are lists of {role, content}, and `generate "
    "--mapping` writes them so",
}
"""The same for options of one command."""
