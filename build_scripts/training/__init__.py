"""The parts of train_lora.py: examples, batches, the packed forward pass, the loop, the record."""
