#!/bin/sh
# Run the image's command as the user `worker` instead of root, where that user can keep weights:
# Runpod's network volumes belong to root.
set -eu
WORKER=10001
AS_WORKER="setpriv --reuid $WORKER --regid $WORKER --clear-groups --no-new-privs"

# On a load-balancing endpoint the worker is the HTTP server. PORT may be below 1024, which not
# every host lets a user other than root open.
if [ -n "${PORT:-}" ]; then
    if [ "$*" = "python -u handler.py" ]; then
        set -- python -u start.py
    fi
    AS_WORKER="$AS_WORKER --inh-caps +net_bind_service --ambient-caps +net_bind_service"
fi
AS_WORKER="$AS_WORKER --"

if [ "$(id -u)" -ne 0 ]; then
    exec "$@"
fi
weights=${HF_HUB_CACHE:-$HF_HOME}
if [ ! -e "$weights" ] && mkdir -p "$weights"; then
    chown "$WORKER:$WORKER" "$weights" || true
fi
# What the hub client writes to: in HF_HOME its own folder, once there is one.
cache=$weights
if [ -z "${HF_HUB_CACHE:-}" ] && [ -d "$HF_HOME/hub" ]; then
    cache=$HF_HOME/hub
fi
# Where root can't write either, nothing is won by staying root.
if $AS_WORKER test -w "$cache" || [ ! -w "$cache" ]; then
    exec $AS_WORKER "$@"
fi
echo "running as root: user $WORKER can't write to $cache (chown -R $WORKER $weights lets it)" >&2
exec "$@"
