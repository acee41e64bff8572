"""Which rows of a manifest are good enough to train on: by scores, tasks and licences, column by column."""
