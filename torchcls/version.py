"""The version of torchcls, where every room and the build can read it."""

__version__ = "0.1.0"
