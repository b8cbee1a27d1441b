"""What clients talk to: the Triton models."""
