def test_it(pipeline):
    r = pipeline.export(format="xlsx")
    print(r, r.run.success)
    for e in r.failures: print(e.step_failure_data)
    assert r.state.status == "completed"
    assert len(r.mails) == 1
    r = pipeline.export(format="xxx")
    print(r)
    for e in r.failures: print(e.step_failure_data.user_failure_data, e.step_failure_data.error)
    print(r.state.message)
