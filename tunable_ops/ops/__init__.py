"""The operators: wrapper, checks, registration. Users import them from `tunable_ops` or `tunable_ops.functional`."""
