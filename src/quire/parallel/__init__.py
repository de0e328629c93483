"""Several ranks that run one model: what each keeps, and what they tell one another."""
