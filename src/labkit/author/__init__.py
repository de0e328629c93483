"""Making a lab: its notebook, its release, its Gradescope bundle, and the test of its tests."""
