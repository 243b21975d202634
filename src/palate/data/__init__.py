"""Rows in, batches out: formats, loading, validation, tokenization, pairing, collation (knows no model and no loss)."""
