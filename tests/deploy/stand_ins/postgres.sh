#!/bin/sh
# Starts as root, makes the database at its first start, and goes on as postgres: what compose and the tests ask of the
# real image.
set -eu
data=/var/lib/postgresql/18/docker
auth=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
become() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
[ "${1:-}" = postgres ] && shift
install -d -o postgres /run/postgresql
if [ ! -s "$data/PG_VERSION" ]; then
  install -d -o postgres -g postgres -m 700 "$data"
  become initdb -D "$data" -U postgres -E UTF8 --auth-local=trust --auth-host="$auth" \
    ${POSTGRES_PASSWORD_FILE:+--pwfile="$POSTGRES_PASSWORD_FILE"} >/dev/null
  [ "${POSTGRES_DB:-postgres}" = postgres ] ||
    echo "create database $POSTGRES_DB" | become postgres --single -D "$data" postgres >/dev/null
  # Once for nobody, as the real image does for its scripts.
  become pg_ctl -D "$data" -w -o "-c listen_addresses= -c unix_socket_directories=/run/postgresql" start
  become pg_ctl -D "$data" -w stop
  echo "host all all all $auth" >>"$data/pg_hba.conf"
fi
exec setpriv --reuid postgres --regid postgres --clear-groups \
  postgres -D "$data" -c "listen_addresses=*" -c unix_socket_directories=/run/postgresql "$@"
