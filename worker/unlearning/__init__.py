"""Unlearning on LoRA adapters with BLUR: a pure library, without queue, database or network."""
