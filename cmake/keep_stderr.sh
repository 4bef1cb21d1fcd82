#!/bin/sh
# keep_stderr.sh LOG COMMAND...: runs the command with its standard error in LOG, shown on failure.
log=$1
shift
"$@" 2>"$log" && exit 0
status=$?
cat "$log" >&2
exit $status
