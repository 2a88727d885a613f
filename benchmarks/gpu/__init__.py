"""Parts of the GPU benchmark."""
