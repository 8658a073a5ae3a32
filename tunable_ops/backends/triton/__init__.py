"""The backend made of Triton kernels: CUDA tensors, or CPU tensors in Triton's interpreter."""
