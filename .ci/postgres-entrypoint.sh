#!/bin/sh
# Entry point of the image that `.ci/database-image postgres` builds. Understands the part of the official image's
# contract that the tests use: POSTGRES_PASSWORD (required unless POSTGRES_HOST_AUTH_METHOD=trust),
# POSTGRES_USER, POSTGRES_DB, POSTGRES_HOST_AUTH_METHOD, and server options given as the command.
set -eu

data=/var/lib/postgresql/data
user=${POSTGRES_USER:-postgres}
method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)

as_postgres() {
    setpriv --reuid postgres --regid postgres --init-groups "$@"
}

init() {
    if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "$method" != trust ]; then
        echo "POSTGRES_PASSWORD is not set" >&2
        exit 1
    fi
    install -d -o postgres -g postgres -m 700 "$data" /run/postgresql
    secret=$(as_postgres mktemp)
    printf '%s\n' "${POSTGRES_PASSWORD:-unused}" >"$secret"
    as_postgres "$bin/initdb" -D "$data" -U "$user" --pwfile="$secret" --auth="$method" \
        --encoding=UTF8 --locale=C.UTF-8 --no-sync
    rm -f "$secret"
    printf 'host all all all %s\n' "$method" >>"$data/pg_hba.conf"
    database=${POSTGRES_DB:-$user}
    [ "$database" = postgres ] || create_database "$database"
}

create_database() {
    printf 'CREATE DATABASE "%s"\n' "$1" |
        as_postgres "$bin/postgres" --single -D "$data" postgres >/dev/null
}

[ -s "$data/PG_VERSION" ] || init
[ "${1:-}" = postgres ] && shift
unset POSTGRES_PASSWORD
exec setpriv --reuid postgres --regid postgres --init-groups \
    "$bin/postgres" -D "$data" -c 'listen_addresses=*' "$@"
