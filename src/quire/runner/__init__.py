"""The device's side of the engine."""
