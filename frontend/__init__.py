"""Reading trained models into modules: torch.export, Hugging Face directories, GGUF files."""
