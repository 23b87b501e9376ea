"""Peak memory of compressed models: what the measured processes do."""
