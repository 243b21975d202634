"""Dialects of HTTP, a file each: which bodies, which special tokens, which answers."""
