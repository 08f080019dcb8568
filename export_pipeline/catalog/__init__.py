"""What may be exported: the dataset model, its loader and the datasets that ship.

What belongs here: the declaration of a dataset and the errors of a wrong declaration.
What does not: SQL, files, requests. Nothing here talks to a database.
"""
