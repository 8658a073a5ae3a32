"""The backend made of PyTorch's own operators: blend once, then the library's convolution."""
