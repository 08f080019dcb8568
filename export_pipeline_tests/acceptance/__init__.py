"""The product as a whole: what a row of ``export_requests`` asks for is what is delivered, and nothing else."""
