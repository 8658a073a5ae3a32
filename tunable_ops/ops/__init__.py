"""The operators: their wrappers and registration. Users import them from `tunable_ops` or `tunable_ops.functional`."""
