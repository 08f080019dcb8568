"""The Dagster sensors, one module a sensor."""
