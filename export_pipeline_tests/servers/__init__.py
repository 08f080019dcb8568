"""Real servers for the tests: PostgreSQL, S3, SMTP, and a strict stand-in for SendGrid."""
