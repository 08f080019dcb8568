"""The Dagster sensors, one module per sensor."""
