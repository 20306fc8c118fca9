"""What the three stages share while they train: state, checkpoints, log, metrics, adaptation."""
