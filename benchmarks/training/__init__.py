"""The board of training: a small LLaMA pretrained on the standard library's sources."""
