"""The UI's descriptions of jobs, ops and sensors, for operators who do not read code."""

from __future__ import annotations

# Of jobs and ops: Markdown.

EXPORT = """
One run exports one row of `export_requests`: it writes the files to the store and mails the recipients.

* **Which export?** See the tags `export/organization`, `export/dataset`, `export/format` and `export/request_uid`.
  Click one to filter the runs by it. The row itself: `export-pipeline status <request_uid>`.
* **How far is it?** See the step that is running and the `INFO` lines in its events (rows done of all rows).
* **What failed, and who has to act?** See the tags `export/error_code` and `export/fault`. The `STEP_FAILURE` event of
  the red step says what to press.
* **To continue after the cause is fixed:** *Re-execute → From failure*. Nothing is read or mailed twice.
* **To stop it:** *Terminate*. The row becomes `canceled`, no file stays in the store, and no mail is sent.
"""
NOTIFY = """
Sends the mails that the request's own run did not send: to the recipients of a completed request, to the requester of
a failed one.

`export_reconciler` starts these runs 2, 4, 8, … minutes apart, at most six. **Nothing to press** before the sixth has
failed; then bring the mail provider back and *Re-execute* it. No mail is sent twice.
"""
WEBHOOKS = "Calls the webhooks of requests that ended (`webhook_url`). Safe to launch at any time."
JANITOR = """
Runs every hour. Deletes files older than `EXPORT_RETENTION_DAYS` (the row becomes `expired`) and what crashed attempts
left behind.

Safe to launch at any time. `failed` in the step's output counts what could not be deleted; the next run tries again.
**If it fails**, the red step names the parts that were not done. All other parts were done.
"""
PLAN = """
Checks the request against the catalog and writes the plan. Nothing is read yet.

**If it fails**, the requester has to correct the request. The row's `message` says how; it may repeat what was typed,
so it is not shown here.
"""
FILTER_ENTITIES = """
Reads the organization's rows in **one database snapshot** and stages them as Arrow. From here on the number of rows is
exact.

**If it fails**, check the source database: is it up, may the export user read, was the statement time-out reached?
"""
SERIALIZE = """
Writes the files of a shard in the requested format, none larger than `max_file_size_mb`.

Counters in the output (`cut_cells`, `guarded_cells`, …) count the cells that were changed so that the format can hold
them.
"""
UPLOAD = """
Uploads the files of a shard to the store with checksums. The output links to the objects (unsigned, for operators).

**If it fails**, check the store: does the bucket exist, may the exporter write, is there space? Then
*Re-execute → From failure*: the rows are not read again.
"""
PUBLISH = """
Verifies that all files arrived, writes the **manifest last**, and marks the request `completed`.

After that, this run cannot make the export again.
"""
NOTIFY_RECIPIENTS = """
Mails links or files to every recipient, **once**. The files are already there: the row is `completed`.

**If it fails**, check the mail provider. `notify` runs try again by themselves. A re-execution mails only the
recipients who have no mail yet.
"""
RESUME_NOTIFICATION = """
Sends the mails that the request's own run did not send before it ended: to the recipients of a completed request, to
the requester of a failed one.
"""
CALL_WEBHOOKS = "Calls every webhook that is due, signed. A call that is not accepted is tried again later."
CLEAN = "Expires old exports, clears what ended attempts left, aborts unfinished uploads and deletes old runs."

# Of sensors: the UI shows them as plain text.

EXPORT_REQUESTS = (
    "Claims queued rows of export_requests, at most 50 a tick, in turns across organizations, and starts their runs. "
    "At most 100 requests of an organization, and 300 in total, are claimed and have not begun. Turn it off to stop "
    "new exports: rows then wait, and 'export-pipeline queue' shows them. If ticks are skipped with 'could not be "
    "read', check the request database."
)
EXPORT_CANCELLATIONS = (
    "Cancels requests whose cancel_requested_at is set: the row, and its run if it has one. Also marks the row of a "
    "run that was terminated in this UI as canceled. Leave it on."
)
EXPORT_RECONCILER = (
    "Compares rows with their runs and heartbeats. A request whose process died gets a new attempt; mails that a dead "
    "run did not send get a notify run. Leave it on: without it a killed export stays 'running' for ever. If a tick "
    "lists uids, those failed now and are tried again at the next tick."
)
RECURRING_EXPORTS = "Inserts a row into export_requests for each fire time of recurring_exports that is due, once."
EXPORT_WEBHOOKS = "Starts a run of the job webhooks when calls are due, one run at a time."
EXPORT_ALERTS = (
    "Alerts operators of failed runs and of a broken installation, through a Slack-compatible webhook "
    "(EXPORT_ALERT_WEBHOOK_URL), by mail (EXPORT_ALERT_EMAIL), or both. Off unless one of them is set. Faults of "
    "requesters send no alert (EXPORT_ALERT_FAULTS). Each failed run is alerted once per channel; its tags "
    "export/alert_webhook and export/alert_mail say what became of the alert. If a tick says 'not delivered', check "
    "the webhook or the mail provider: the alert is tried once more, a minute later."
)
EXPORT_INSTALLATION = (
    "Fails while something keeps the whole installation from working: wrong settings, a catalog that does not load "
    "(exports go on with the last good one), a request database that does not answer. The error of the failed tick "
    "says what to correct. export_alerts alerts operators of it once."
)
