#!/bin/sh -e
# Stands in for TimescaleDB's entry point: plain PostgreSQL under the same variables.
data=/var/lib/postgresql/data
export PGPASSWORD="$POSTGRES_PASSWORD"
if [ ! -s "$data/PG_VERSION" ]; then
  (umask 077 && echo "$POSTGRES_PASSWORD" > /tmp/password)
  initdb -D "$data" -U "$POSTGRES_USER" --pwfile=/tmp/password -A scram-sha-256 -E UTF8 >/dev/null
  rm /tmp/password
  echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
  pg_ctl -D "$data" -o "-c listen_addresses=" -w start >/dev/null
  createdb -h /var/run/postgresql -U "$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl -D "$data" -m fast -w stop >/dev/null
fi
exec postgres -D "$data" -c "listen_addresses=*"
