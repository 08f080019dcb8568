"""Dataset declarations: what may be exported, and the errors of a wrong declaration. Nothing here uses a database."""
