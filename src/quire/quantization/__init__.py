"""How linear layers store their weights and multiply by them: the `QuantMethod`s."""
