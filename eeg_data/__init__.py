"""HDF5 files of EEG: reading, judging, and making batches of them."""
