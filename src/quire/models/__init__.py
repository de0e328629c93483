"""The decoder, its configuration and the checkpoint loader."""
