"""Human ratings: one kind of record, the files they come in, and what was rated. No reward is known here."""
