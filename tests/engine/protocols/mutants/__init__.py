"""Wrong implementations, each with a bug of the kind that engines have had; all must fail."""
