"""What the three stages share while they train: state, checkpoints, log, metrics, adaptation."""

# Flags that change no number, flags whose files are compared by content, and flags that only repeat what files say.
FREE_FLAGS = {"output_dir", "log_dir", "device", "num_workers", "pin_mem", "resume", "auto_resume", "resume_anyway"}
FREE_FLAGS |= {"save_ckpt", "save_ckpt_freq", "save_every_minutes", "keep_last", "start_epoch", "eval", "nb_classes"}
FREE_FLAGS |= {"train_data", "val_data", "dataset", "data_dir", "tokenizer_weight", "finetune", "grad_checkpoint"}
FREE_FLAGS |= {"calculate_codebook_usage", "disable_rel_pos_bias", "input_size", "precision", "codebook_size"}
FREE_FLAGS |= {"codebook_dim", "total_batch_size", "gradient_accumulation_steps", "update_freq", "cuda_graphs"}
FREE_FLAGS |= {"recipe"}  # what it sets are flags themselves
