"""What the UI says of jobs, ops and sensors: Markdown for operators who do not read code."""

from __future__ import annotations

EXPORT = """
One run = one row of `export_requests`: its files go to the store, its recipients are mailed.

* **Which export?** The tags: `export/organization`, `export/dataset`, `export/format`, `export/request_uid`. Click one
  to filter the runs by it. The row itself: `export-pipeline status <request_uid>`.
* **How far?** The step that is executing, and the `INFO` lines in its events (rows done of all rows).
* **What failed, whose turn is it?** The tags `export/error_code` and `export/fault`; the red step's `STEP_FAILURE` says
  what to press.
* **Go on after mending the cause:** *Re-execute → From failure*. Nothing is read or mailed twice.
* **Stop it:** *Terminate*. The row says `canceled`, nothing stays in the store, nobody is mailed.
"""
NOTIFY = """
Mails that the request's own run did not send: to its recipients if it completed, to its requester if it failed.

`export_reconciler` asks for these runs, 2, 4, 8, … minutes apart, six at most. **Nothing to press** before the sixth
has failed; then bring the mail provider back and *Re-execute* it. Nobody is mailed twice.
"""
JANITOR = """
Hourly. Deletes files past `EXPORT_RETENTION_DAYS` (the row says `expired`) and what crashed attempts left behind.

Safe to launch at any time. `failed` in the step's output counts what could not be deleted; the next run tries again.
**If it fails**, the red step names the parts that were not done; all others were.
"""
PLAN = """
Checks the request against the catalog and writes the plan; nothing is read yet.

**If it fails**, the request has to be corrected: its row's `message` says how (it may repeat what was typed, so it is
not shown here).
"""
FILTER_ENTITIES = """
Reads the organization's rows in **one database snapshot** and stages them as Arrow. The number of rows is exact from
here on.

**If it fails**, look at the source database: is it up, may we read, did the statement time-out strike?
"""
SERIALIZE = """
Writes a shard's files in the requested format, none larger than `max_file_size_mb`.

Counters in the output (`cut_cells`, `guarded_cells`, …) say what was changed in cells so that the format can hold them.
"""
UPLOAD = """
Uploads a shard's files to the store with checksums; the output links to the objects (unsigned, for operators).

**If it fails**, look at the store: does the bucket exist, may we write, is there space? Then
*Re-execute → From failure*: the rows are not read again.
"""
PUBLISH = """
Proves that everything arrived, writes the **manifest last**, and marks the request `completed`.

From here on the export cannot be made again by this run.
"""
NOTIFY_RECIPIENTS = """
Mails every recipient links or the files, **once**. The files are there already: the row says `completed`.

**If it fails**, look at the mail provider. `notify` runs try again by themselves; re-execution mails only who has none
yet.
"""
RESUME_NOTIFICATION = """
Goes on with the mails of a request whose own run ended before they were all sent: those of its recipients if it
completed, that of its requester if it failed.
"""
CLEAN = "Expires exports past retention, clears leftovers of ended attempts, aborts orphan uploads, forgets old runs."
# The UI shows those of sensors as plain text.

EXPORT_REQUESTS = (
    "Claims queued rows of export_requests, at most 50 a tick, in fair turns across organizations, and asks for "
    "their runs; at most 100 of an organization and 300 of all are claimed and not begun. Turn it off to stop new "
    "exports; rows wait, and 'export-pipeline queue' shows them. If ticks are skipped with 'could not be read', look "
    "at the request database."
)
EXPORT_CANCELLATIONS = (
    "Cancels what cancel_requested_at asks to be canceled: the row, and its run if it has one. Tells the row of a run "
    "that was terminated here, wherever its steps are at work. Leave it on."
)
EXPORT_RECONCILER = (
    "Compares rows with their runs and heartbeats, and mends what lost its run (a killed process costs one "
    "attempt); asks for the mails that a dead run left. Leave it on: without it a killed export stays 'running' for "
    "ever. If a tick lists uids, those could not be mended now and are tried again at the next."
)
EXPORT_ALERTS = (
    "Tells operators of failed runs, and of an installation that is broken, by a Slack-compatible webhook "
    "(EXPORT_ALERT_WEBHOOK_URL), a mail (EXPORT_ALERT_EMAIL), or both; off unless one of them is set. Faults of "
    "requesters alert nobody (EXPORT_ALERT_FAULTS). At most one alert a failed run: its tags export/alert_webhook and "
    "export/alert_mail say what became of it. If ticks are skipped with 'not delivered', look at the webhook or the "
    "mail provider; it is tried again by itself for a day."
)
EXPORT_INSTALLATION = (
    "Fails while something keeps the whole installation from its work: settings that are wrong, a catalog that does "
    "not load (exports go on with the last good one), a request database that does not answer. The error of the failed "
    "tick says what to correct. export_alerts tells operators once."
)
