"""Grading a class: hand-ins in, records, grades and pages out."""
