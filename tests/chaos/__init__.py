"""Many jobs under random faults, judged by what their callers and the bucket see.

    plan     seed -> jobs, incidents          what is asked, and what happens to the worker
    weather  seed -> a fault for each call    control plane, store, pictures, handshakes
    run      plan + weather -> histories      the real handler.py, the real SDK, a real S3 server
    judge    histories + bucket -> a verdict  lost, mixed, half, twice-different, scratch, memory

`make chaos` runs 1,000 jobs one at a time and 1,000 four at a time.
"""
