"""A server of artefacts: one front process speaks HTTP, gathers rows into batches and remembers answers; workers, a process each, compute.

    wire            what front and workers say to each other: typed frames, never pickles
    worker_main     a worker: loads the artefact, answers batches of one member of the cascade
    supervision     the front's side of workers: start, restart, a batch that was lost with its worker
    batching        which waiting rows go together: deadline, like lengths, the seconds that batches took so far
    generation      one artefact at work: queues of rows before each member, admission, hand-over to the next artefact
    exchange        hot swap with a trial and a way back
    requests        bodies of requests as typed, limited data
    responses       answers that are known already, and rows that are being computed: once for all who ask
    energy          joules and grams of the server, and the share of a request
    app             the ASGI application over all of it; openapi, metrics: its pages
    server          sockets, signals, drain
    deployment      a Dockerfile and a systemd unit
"""
