"""Speculative decoding: guess the next tokens cheaply, let one step of the model check them all.

A `Proposer` guesses, a verification decides how many guesses stand. See the chapter "Speculative
decoding".
"""
