"""Named variants of one trainable over splits and seeds: which is better, by how much, how sure."""
