"""Recurring exports: rows, dispatch of their fire times as requests, and unsubscribing from their mails."""
