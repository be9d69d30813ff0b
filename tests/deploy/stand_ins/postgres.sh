#!/bin/sh
# Starts as root, makes the database at its first start, and goes on as postgres: what compose asks of the real image.
set -eu
data=/var/lib/postgresql/18/docker
become() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
chown postgres /run/postgresql
if [ ! -s "$data/PG_VERSION" ]; then
  install -d -o postgres -g postgres -m 700 "$data"
  become initdb -D "$data" -U postgres -E UTF8 --auth=scram-sha-256 --pwfile="$POSTGRES_PASSWORD_FILE" >/dev/null
  echo "create database $POSTGRES_DB" | become postgres --single -D "$data" postgres >/dev/null
  echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
fi
shift
exec setpriv --reuid postgres --regid postgres --clear-groups \
  postgres -D "$data" -c "listen_addresses=*" -c unix_socket_directories=/run/postgresql "$@"
