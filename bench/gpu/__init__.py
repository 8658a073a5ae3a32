"""What a machine with a GPU is asked to do: two plans, each under nine minutes, behind bench/on_gpu.sh."""
