"""How fast, and in how much memory: our engines and our peers over the same batches, in the same run."""
