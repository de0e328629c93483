"""What runs in the reader's notebook, and the lab and hand-in that both sides know."""
