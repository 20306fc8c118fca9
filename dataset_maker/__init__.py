"""Makers of the project's HDF5 files: one `make_*.py` per source of recordings, all over `pipeline.py`."""
