"""Packages of tunable_ops; everything else about the distribution is in pyproject.toml.

`triton_kernels` is also the name of a distribution of Triton's own, so the folder at the top of the
repository installs as `tunable_ops.triton_kernels`.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["tunable_ops", "tunable_ops.*"]),
        "tunable_ops.triton_kernels",
    ],
    package_dir={"tunable_ops.triton_kernels": "triton_kernels"},
    package_data={"tunable_ops": ["py.typed", "train/configs/*.toml"], "tunable_ops.triton_kernels": ["tables/*.json"]},
)
