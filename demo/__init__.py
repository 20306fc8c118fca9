"""All three stages on public EEG from the package index: `python -m demo`."""
