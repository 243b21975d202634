"""A Scorer and preference groups in, a Result out."""
