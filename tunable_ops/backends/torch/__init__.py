"""The backend made of PyTorch's own operators: blend first, then PyTorch's convolution."""
