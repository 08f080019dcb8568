"""export-pipeline: a row in ``export_requests`` becomes files on S3 and a mail to every recipient.

Floors, from the top; a module imports only from its own floor or below (held by import-linter):
``definitions``, ``cli``, ``demo`` > ``orchestration`` > ``delivery`` > ``engine`` > ``requests``
> ``catalog`` > ``settings``, ``failures``.
"""
