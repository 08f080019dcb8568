"""Mail, webhooks and alerts: texts, messages, and the providers that send them.

``stages`` decides when recipients are notified; ``failure_mail`` decides who hears of a failure.
"""
