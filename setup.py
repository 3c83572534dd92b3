"""Builds the accelerator, where there is a compiler; all else is in setup.cfg."""

from pathlib import Path

import persistent
from setuptools import Extension, setup

accelerator = Extension(
    "objdb._accelerator",
    sources=["objdb/_accelerator.c", "objdb/_unpickle.c"],
    depends=["objdb/_unpickle.h"],
    include_dirs=[str(Path(persistent.__file__).parent.parent)],
    optional=True,
)
setup(ext_modules=[accelerator])
