"""Lays out the wheel; everything else about the package is in pyproject.toml.

Three import packages come from three folders, and `recipes/` and `slurm/` travel inside the wheel as
`sama_mega/_bundled/`, where `sama_mega.config.find_bundled` looks for them outside a clone.
"""

from setuptools import find_packages, setup

BUNDLED = {"recipes": ["*.yaml"], "slurm": ["*.sh", "*.yaml"]}

setup(
    packages=[
        *find_packages(".", include=["sama_mega", "sama_mega.*"]),
        *find_packages("kernels", include=["sama_kernels", "sama_kernels.*"]),
        *find_packages("data", include=["sama_data", "sama_data.*"]),
        *(f"sama_mega._bundled.{folder}" for folder in BUNDLED),
    ],
    package_dir={
        "sama_mega": "sama_mega",
        "sama_kernels": "kernels/sama_kernels",
        "sama_data": "data/sama_data",
        **{f"sama_mega._bundled.{folder}": folder for folder in BUNDLED},
    },
    package_data={
        "sama_mega.judged": ["suites/*.yaml"],
        **{f"sama_mega._bundled.{folder}": patterns for folder, patterns in BUNDLED.items()},
    },
)
