"""Mail, webhooks and alerts: texts, messages, and the providers that send them.

Who is notified, and when, is decided in ``stages`` and ``requests``.
"""
