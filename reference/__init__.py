"""The reference run: what the three stages do on public EEG, cell by cell. `reference/README.md` says how and what."""
